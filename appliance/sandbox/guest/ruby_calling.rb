# frozen_string_literal: true

# The Ruby runner's CALL: a model calls another model of its tenant.
#
# Owns: CALL, RETURN and ERR of PROTOCOL.md for Ruby, and the library `appliance_model` that models
# require; the standard library only; loaded by ruby_runner.rb where the manifest declares `calls`.
# Never: is trusted; decides nothing: the appliance does.
# Read next: PROTOCOL.md, ruby_runner.rb.
#
#   require 'appliance_model'
#
#   scaled = ApplianceModel.call('iris-scaler', { rows: [[5.1, 3.4, 1.5, 0.2]] })
#   answer = ApplianceModel.call('iris-classifier@live', scaled['features'])
#
# Any thread may call while a request is being answered.

# What models see.
module ApplianceModel
  # A call was refused or failed: `code` is the problem, `status` its HTTP status.
  class CallFailed < StandardError
    attr_reader :code, :status

    def initialize(detail = '', code = '', status = 0)
      super(detail)
      @code = code
      @status = status
    end
  end

  class << self
    # The answer of another model of the same tenant.
    #
    # target: 'NAME', 'NAME:VERSION' or 'NAME@ALIAS', declared in `calls`; inputs: text, a binary
    # string, or anything that can be JSON; content_type: of inputs, where it is not what that would
    # be. Raises CallFailed: there is no answer; `code` says why.
    def call(target, inputs = nil, content_type: nil)
      @calls.call(target, inputs, content_type)
    end

    # Called by the runner, once.
    def over(channel)
      @calls = ApplianceRunner::Calls.new(channel)
      $LOADED_FEATURES << 'appliance_model.rb'
      @calls
    end
  end
end

module ApplianceRunner
  # Calls over the runner's connection, beside the requests that it answers; it takes the channel's
  # place. A thread of its own reads: one that waits for an answer may be interrupted (Timeout).
  class Calls
    Waiting = Struct.new(:answer)

    def initialize(channel)
      @channel = channel
      @frames = Thread::Queue.new
      @sending = Mutex.new # held while a frame is written
      @state = Mutex.new # held while what follows is looked at
      @changed = ConditionVariable.new
      @open = {} # the id of each CALL that has no answer yet, and who waits for it
      @request = nil
      @parallel_max = @body_bytes_max = @count = 0
      Thread.new { sort }.abort_on_exception = true
    end

    # The next frame that is no answer to a call, for the runner's own loop.
    def receive
      header, body = @frames.pop
      limits = header['calls']
      if header['type'] == 'REQ' && limits
        @state.synchronize do
          @parallel_max, @body_bytes_max = limits.values_at('parallel_max', 'body_bytes_max')
          @request = header['id']
        end
      end
      [header, body]
    end

    # After the answer to a request nothing is called for it any more.
    def send_frame(header, body = '')
      write do
        close if %w[RES ERR].include?(header[:type])
        @channel.send_frame(header, body)
      end
    end

    def call(target, inputs, content_type)
      media, body = encoded(inputs)
      header = { type: 'CALL', target: target.to_s[0, 140], content_type: (content_type || media)[0, 256] }
      answer, content = answer_to(open_call(header, body))
      return ApplianceRunner.inputs(answer['content_type'].to_s, content) if answer['type'] == 'RETURN'

      raise ApplianceModel::CallFailed.new(answer['detail'].to_s, answer['code'].to_s, answer['status'].to_i)
    end

    private

    # A frame is written whole: no timeout cuts it in two.
    def write(&block)
      Thread.handle_interrupt(Object => :never) { @sending.synchronize(&block) }
    end

    # Read every frame: an answer goes to its call, all else to the runner's loop.
    def sort
      loop do
        header, body = @channel.receive
        next @frames << [header, body] unless %w[RETURN ERR].include?(header['type'])

        @state.synchronize { settle(header['id'], [header, body]) }
      end
    end

    def settle(id, answer)
      waiting = @open.delete(id) # nobody's, if its request was answered meanwhile
      waiting.answer = answer if waiting
      @changed.broadcast
    end

    def close
      @state.synchronize do
        @request = nil
        gone = [{ 'type' => 'ERR', 'detail' => 'The request was answered.' }, '']
        @open.keys.each { |id| settle(id, gone) }
      end
    end

    def encoded(inputs)
      ApplianceRunner.answer(inputs)
    rescue Fault => e
      raise TypeError, e.message.sub('The answer', 'The input')
    end

    # Send a CALL, once few enough are open.
    def open_call(header, body)
      request = @state.synchronize { @request }
      refuse('Models are called while a request is answered only.') unless request
      if body.bytesize > @body_bytes_max
        refuse("The body is over #{@body_bytes_max} bytes.", 'too-large', 413)
      end
      waiting = Waiting.new
      Thread.handle_interrupt(Object => :on_blocking) do # or one that is never sent stays open
        id = reserve(request, waiting)
        write do
          is_open = @state.synchronize { @open.key?(id) }
          @channel.send_frame(header.merge(id: id, req: request), body) if is_open
        end
      end
      waiting
    end

    def reserve(request, waiting)
      @state.synchronize do
        @changed.wait(@state) while @request == request && @open.size >= @parallel_max
        refuse('The request this call was for has been answered.') unless @request == request
        @count += 1
        @open["c#{@count}"] = waiting
        "c#{@count}"
      end
    end

    def answer_to(waiting)
      @state.synchronize do
        @changed.wait(@state) until waiting.answer
        waiting.answer
      end
    end

    def refuse(detail, code = '', status = 0)
      raise ApplianceModel::CallFailed.new(detail, code, status)
    end
  end
end
