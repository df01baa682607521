# frozen_string_literal: true

# The Ruby runner: the process inside a sandbox that loads one model and answers its calls.
#
# Owns: the guest half of PROTOCOL.md for Ruby; the standard library only, one file.
# Never: is trusted. Model code runs in this very process and may do to it what it likes.
# Read next: PROTOCOL.md, monitor.pl (the process above this one), ruby_calling.rb.
#
# A model: `entry = "model.rb:Model"`, a class with initialize(path) and predict(inputs), or the
# name of a method that takes the path and returns something with call or predict. Inputs: JSON as
# hashes and arrays, text as a UTF-8 string, anything else as a binary string.

require 'socket'
require 'json'

# The guest half of the protocol.
module ApplianceRunner
  SOCKET = ENV['APPLIANCE_SOCKET'] || '/run/app/a.sock'
  OCTETS = 'application/octet-stream'

  # Something to report as ERR.
  class Fault < StandardError
    attr_reader :kind

    def initialize(kind, detail)
      super(detail)
      @kind = kind
    end
  end

  # Frames over the connection.
  class Channel
    def initialize(link)
      @link = link
    end

    def bytes(size)
      return ''.b if size.zero?

      data = @link.read(size)
      exit!(0) if data.nil? || data.bytesize < size # the appliance is gone
      data
    end

    def receive
      header_bytes, body_bytes = bytes(12).unpack('NQ>')
      [JSON.parse(bytes(header_bytes).force_encoding('UTF-8')), bytes(body_bytes)]
    end

    def send_frame(header, body = '')
      text = JSON.generate(header).b
      @link.write([text.bytesize, body.bytesize].pack('NQ>') + text, body)
      @link.flush
    end
  end

  # The CHUNK frames after a LOAD as one stream.
  class Chunks
    def initialize(channel)
      @channel = channel
      @pending = ''.b
      @at = 0
      @last = false
    end

    # Between 1 and size bytes; none at the end.
    def some(size)
      while @at >= @pending.bytesize && !@last
        header, @pending = @channel.receive
        @at = 0
        @last = header['last'] == true
      end
      piece = @pending.byteslice(@at, size) || ''.b
      @at += piece.bytesize
      piece
    end

    def exactly(size)
      data = ''.b
      while data.bytesize < size
        piece = some(size - data.bytesize)
        break if piece.empty?

        data << piece
      end
      data
    end
  end

  module_function

  def number_from_field(field)
    return field.byteslice(-8, 8).unpack1('Q>') if field.getbyte(0) & 0x80 != 0

    field.delete("\0 ").to_i(8)
  end

  # The records of a pax header: lines of "<length> <key>=<value>".
  def records(data)
    found = {}
    until data.empty?
      length = data[/\A\d+/]
      key, _, value = data.byteslice(length.size + 1, length.to_i - length.size - 2).partition('=')
      found[key] = value
      data = data.byteslice(length.to_i, data.bytesize) || ''
    end
    found
  end

  # Write the regular files and folders of a tar stream (ustar, pax, GNU names).
  def unpack(source, folder)
    extra = {}
    loop do
      head = source.exactly(512)
      break if head.bytesize < 512 || head.delete("\0").empty?

      kind = head.byteslice(156, 1)
      size = number_from_field(head.byteslice(124, 12))
      if 'xgL'.include?(kind)
        data = source.exactly(size + (-size % 512)).byteslice(0, size)
        extra.update(records(data)) if kind == 'x'
        extra['path'] = data.unpack1('Z*') if kind == 'L'
        next
      end
      name = head.unpack1('Z100')
      prefix = head.byteslice(345, 155).unpack1('Z*')
      name = "#{prefix}/#{name}" if head.byteslice(257, 6) == "ustar\0" && !prefix.empty?
      write_member(source, folder, extra['path'] || name, kind, (extra['size'] || size).to_i)
      extra = {}
    end
    nil until source.some(1 << 20).empty?
  end

  def write_member(source, folder, path, kind, size)
    path = path.dup.force_encoding('UTF-8')
    parts = path.split('/').reject { |part| ['', '.'].include?(part) }
    if path.start_with?('/') || parts.include?('..') || !"0\0005".include?(kind)
      raise Fault.new('input', "The artifact holds an unsafe or special file: #{path.inspect}.")
    end

    target = File.join(folder, *parts)
    return make_folders(folder, parts) if kind == '5'

    make_folders(folder, parts[0...-1])
    File.open(target, 'wb') do |out|
      left = size
      while left.positive?
        piece = source.some([left, 1 << 20].min)
        raise Fault.new('input', 'The artifact ends in the middle of a file.') if piece.empty?

        out.write(piece)
        left -= piece.bytesize
      end
    end
    source.exactly(-size % 512)
  end

  def make_folders(folder, parts)
    parts.each do |part|
      folder = File.join(folder, part)
      Dir.mkdir(folder) unless File.directory?(folder)
    end
  end

  # The callable that answers calls, made from "file.rb:Name".
  def predictor(entry, folder)
    file, _, name = entry.partition(':')
    unless File.file?(File.join(folder, file))
      raise Fault.new('entry', "The artifact has no file '#{file}'.")
    end

    require File.join(folder, file)
    target = target_of(file, name)
    made = target.is_a?(Class) ? target.new(folder) : target.call(folder)
    return made.method(:predict) if made.respond_to?(:predict)
    return made if made.respond_to?(:call) && !target.is_a?(Class)

    raise Fault.new('entry', "'#{entry}' has no method 'predict'.")
  end

  def target_of(file, name)
    if name.match?(/\A[A-Z]/)
      target = Object.const_defined?(name) && Object.const_get(name)
      return target if target.is_a?(Class)
    elsif TOPLEVEL_BINDING.receiver.respond_to?(name, true)
      return TOPLEVEL_BINDING.receiver.method(name)
    end
    raise Fault.new('entry', "'#{file}' has no '#{name}'.")
  end

  def inputs(content_type, body)
    media = content_type.split(';').first.to_s.strip.downcase
    is_json = media == 'application/json' || media.end_with?('+json')
    return body unless is_json || media.start_with?('text/')

    text = body.force_encoding('UTF-8')
    raise Fault.new('input', "The body is not valid #{media}: not UTF-8.") unless text.valid_encoding?

    is_json ? JSON.parse(text, max_nesting: false) : text
  rescue JSON::ParserError => e
    raise Fault.new('input', "The body is not valid #{media}: #{e.message[0, 300]}.")
  end

  # The same value with NaN and infinities replaced by null.
  def finite(value)
    case value
    when Float then value.finite? ? value : nil
    when Hash then value.transform_values { |member| finite(member) }
    when Array then value.map { |member| finite(member) }
    else value
    end
  end

  # Content type and bytes of what predict returned.
  def answer(value)
    if value.is_a?(String)
      return [OCTETS, value] if value.encoding == Encoding::BINARY || !value.valid_encoding?

      return ['text/plain; charset=utf-8', value.encode('UTF-8').b]
    end
    ['application/json', json(value).b]
  rescue JSON::GeneratorError, JSON::NestingError, SystemStackError, EncodingError => e
    raise Fault.new('unsupported', "The answer cannot be sent: #{e.message[0, 300]}.")
  end

  def json(value)
    unless sendable?(value)
      raise Fault.new('unsupported', "The answer cannot be sent: it holds a #{value.class}.")
    end

    begin
      JSON.generate(value, max_nesting: 2000)
    rescue JSON::GeneratorError
      JSON.generate(finite(value), max_nesting: 2000)
    end
  end

  # Whether JSON has a form for it; anything else would become the text of its inspection.
  def sendable?(value)
    case value
    when Hash, Array, Numeric, Symbol, nil, true, false then true
    else value.respond_to?(:to_json) && value.method(:to_json).owner != JSON::Ext::Generator::GeneratorMethods::Object
    end
  end

  def clean(text)
    text.to_s.dup.force_encoding('UTF-8').scrub('?')
  end

  # ERR members for an exception; the trace holds the model's own lines.
  def fault(error)
    return { kind: error.kind, detail: clean(error.message)[0, 1500] } if error.is_a?(Fault)
    return { kind: 'memory', detail: 'NoMemoryError' } if error.is_a?(NoMemoryError)

    found = { kind: 'raised', detail: clean("#{error.class}: #{error.message}")[0, 1500], trace: [] }
    if error.is_a?(LoadError) && error.path == 'appliance_model'
      found[:detail] = 'appliance_model is there for models that declare calls = ["OTHER"].'
    elsif error.is_a?(LoadError)
      found.update(kind: 'import', missing: clean(error.path)[0, 200])
    end
    lines = (error.backtrace || []).reject { |line| line.include?(__FILE__) }.first(60)
    left = 6000
    lines.each do |line|
      left -= line.size + 8
      break if left.negative?

      found[:trace] << clean(line)[0, 500]
    end
    found
  end

  def report(channel, id, error)
    members = begin
      fault(error)
    rescue Exception # rubocop:disable Lint/RescueException
      { kind: 'raised', detail: error.class.to_s[0, 200] }
    end
    members.delete(:trace) if JSON.generate(members).bytesize > 15_000
    members[:detail] = members[:detail][0, 500] if JSON.generate(members).bytesize > 15_000
    channel.send_frame({ type: 'ERR', id: id, **members })
  end

  # Put the artifact into its folder, and have what it needs found.
  def prepare(channel, header)
    folder = header['path'] || '/model'
    unless header['proxy'].to_s.empty?
      %w[http_proxy https_proxy HTTP_PROXY HTTPS_PROXY].each { |name| ENV[name] = header['proxy'] }
      ENV['no_proxy'] = ENV['NO_PROXY'] = 'localhost,127.0.0.1,::1'
    end
    unpack(Chunks.new(channel), folder)
    Dir.chdir(folder)
    $LOAD_PATH.unshift(folder)
    use_gems(header['deps'].to_s)
    folder
  end

  def calling(channel)
    require_relative 'ruby_calling'
    ApplianceModel.over(channel)
  end

  # Have `require` find the installed gems; RubyGems itself is loaded only where there are some.
  def use_gems(home)
    return if home.empty?

    require 'rubygems'
    Gem.use_paths(home, [home, *Gem.default_path])
  end

  def serve(channel)
    predict = nil
    loop do
      header, body = channel.receive
      id = header['id'] || ''
      started = Process.clock_gettime(Process::CLOCK_MONOTONIC, :microsecond)
      begin
        if header['type'] == 'LOAD'
          folder = prepare(channel, header)
          channel = calling(channel) if header['calls']
          predict = predictor(header['entry'].to_s, folder)
          members, reply = { type: 'READY' }, ''
        else
          raise Fault.new('entry', 'No model is loaded.') unless predict

          kind, reply = answer(predict.call(inputs(header['content_type'].to_s, body)))
          members = { type: 'RES', id: id, content_type: kind }
        end
      rescue Exception => e # rubocop:disable Lint/RescueException
        report(channel, id, e)
        next
      end
      spent = Process.clock_gettime(Process::CLOCK_MONOTONIC, :microsecond) - started
      channel.send_frame(members.merge(compute_us: spent), reply)
    end
  end
end

$stdout.sync = $stderr.sync = true
link = UNIXSocket.new(ApplianceRunner::SOCKET)
link.binmode
channel = ApplianceRunner::Channel.new(link)
channel.send_frame({ type: 'HELLO', proto: 1, role: 'runner', runtime: 'ruby',
                     version: RUBY_VERSION, concurrency: 1 })
ApplianceRunner.serve(channel)
