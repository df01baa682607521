# The conformance model: text is a command, anything else comes back.
class Model
  def initialize(path)
    @path = path
    @held = []
  end

  def predict(inputs)
    return inputs unless inputs.is_a?(String)
    return inputs.reverse if inputs.encoding == Encoding::BINARY

    word, rest = inputs.split(' ', 2)
    case word
    when 'raise' then raise ArgumentError, 'as asked'
    when 'exit' then exit!(rest.to_i)
    when 'spin' then loop {}
    when 'print' then puts(rest) || 'printed'
    when 'noise' then 2000.times { puts 'x' * 1000 } && 'done'
    when 'nan' then [Float::NAN, { x: Float::INFINITY }, 1.5]
    when 'eat' then loop { @held << ('x' * (1 << 20)) }
    when 'read' then File.read(rest)
    when 'run' then `#{rest}`
    when 'unsendable' then Object.new
    else inputs
    end
  end
end
