require 'appliance_model'
require 'timeout'

# The conformance model that calls: text is a command.
class Model
  def initialize(_path)
    @early = outcome { ApplianceModel.call('echo', 1) }
  end

  def outcome
    yield
  rescue ApplianceModel::CallFailed => e
    e
  end

  def told(found) = found.is_a?(Exception) ? "#{found.code} #{found.status} #{found.message}" : found

  def predict(inputs)
    word, rest = inputs.split(' ', 2)
    case word
    when 'early' then @early.message
    when 'text' then ApplianceModel.call('echo:3', rest)
    when 'values' then ApplianceModel.call('echo', { a: [1, 2.5, nil, true], b: { c: 'ü' } })
    when 'bytes' then ApplianceModel.call('echo@live', (0..255).to_a.pack('C*'))
    when 'typed' then ApplianceModel.call('echo', rest, content_type: 'application/json')
    when 'refused' then told(outcome { ApplianceModel.call(rest, 1) })
    when 'through' then ApplianceModel.call(rest, 1)
    when 'large' then told(outcome { ApplianceModel.call('echo', 'x' * rest.to_i) })
    when 'many'
      Array.new(rest.to_i) { |n| Thread.new { ApplianceModel.call('echo', n) } }.map(&:value)
    when 'impatient'
      begin
        Timeout.timeout(0.2) { ApplianceModel.call('slow', 1) }
      rescue Timeout::Error
        ApplianceModel.call('echo', 'went on')
      end
    when 'leave'
      @left = Thread.new { outcome { ApplianceModel.call('slow', 1) } }
      ApplianceModel.call('second', 1)
      'done'
    when 'left' then @left.value.message
    end
  end
end
