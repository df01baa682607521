// The Node runner's CALL: a model calls another model of its tenant.
//
// Owns: CALL, RETURN and ERR of PROTOCOL.md for JavaScript, and the module `appliance_model` that models
// require; Node's own modules only; loaded by node_runner.js where the manifest declares `calls`.
// Never: is trusted; decides nothing: the appliance does.
// Read next: PROTOCOL.md, node_runner.js.
//
//   const { call, CallFailed } = require('appliance_model');
//
//   const scaled = await call('iris-scaler', { rows: [[5.1, 3.4, 1.5, 0.2]] });
//   const [a, b] = await Promise.all([call('scorer@live', scaled), call('other:3', scaled)]);
'use strict';

const Module = require('module');

class CallFailed extends Error {
  // A call was refused or failed: `code` is the problem, `status` its HTTP status.
  constructor(detail, code = '', status = 0) {
    super(detail);
    this.name = 'CallFailed';
    this.code = code;
    this.status = status;
  }
}

// Calls over the runner's connection, beside the requests that it answers.
class Calls {
  constructor(channel, values) {
    this.values = values;
    this.read = channel.receive.bind(channel);
    this.write = channel.send.bind(channel);
    this.frames = [];
    this.wake = null;
    this.open = new Map(); // the id of each CALL that has no answer, and who waits for it
    this.waiting = []; // calls that wait until fewer are open
    this.request = '';
    this.limits = {};
    this.count = 0;
    channel.receive = () => this.receive();
    channel.send = (header, body) => this.send(header, body);
    this.sort();
  }

  // Read every frame: an answer goes to its call, all else to the runner's loop.
  async sort() {
    for (;;) {
      const [header, body] = await this.read();
      if (header.type === 'RETURN' || header.type === 'ERR') this.answer(header, body);
      else {
        this.frames.push([header, body]);
        if (this.wake) this.wake();
      }
    }
  }

  async receive() {
    while (!this.frames.length) await new Promise((done) => { this.wake = done; });
    const frame = this.frames.shift();
    if (frame[0].type === 'REQ' && frame[0].calls) {
      this.request = frame[0].id;
      this.limits = frame[0].calls;
    }
    return frame;
  }

  // After the answer to a request nothing is called for it any more.
  send(header, body) {
    if (header.type === 'RES' || header.type === 'ERR') {
      this.request = '';
      const gone = [...this.open.values(), ...this.waiting];
      this.open.clear();
      this.waiting = [];
      for (const one of gone) one.reject(new CallFailed('The request was answered.'));
    }
    this.write(header, body);
  }

  answer(header, body) {
    const one = this.open.get(header.id);
    if (!one) return; // of a request that was answered meanwhile
    this.open.delete(header.id);
    if (this.waiting.length) this.begin(this.waiting.shift());
    if (header.type === 'ERR') {
      one.reject(new CallFailed(header.detail || '', header.code || '', header.status || 0));
      return;
    }
    try {
      one.resolve(this.values.inputsOf(header.content_type || '', body));
    } catch (error) {
      one.reject(error);
    }
  }

  begin(one) {
    this.count += 1;
    const id = `c${this.count}`;
    this.open.set(id, one);
    this.write({
      type: 'CALL', id, req: this.request, target: one.target, content_type: one.contentType,
    }, one.body);
  }

  // The answer of another model of the same tenant, as a promise.
  //
  // target: 'NAME', 'NAME:VERSION' or 'NAME@ALIAS', declared in `calls`; inputs: text, bytes, or anything
  // that can be JSON; contentType: of inputs, where it is not what that would be.
  call(target, inputs = null, { contentType = '' } = {}) {
    const promise = new Promise((resolve, reject) => {
      let found;
      try {
        found = this.values.answerOf(inputs);
      } catch (error) {
        throw new TypeError(error.message.replace('The answer', 'The input'));
      }
      const [media, body] = found;
      if (!this.request) throw new CallFailed('Models are called while a request is answered only.');
      if (body.length > this.limits.body_bytes_max) {
        throw new CallFailed(`The body is over ${this.limits.body_bytes_max} bytes.`, 'too-large', 413);
      }
      const one = {
        target: String(target).slice(0, 140),
        contentType: String(contentType || media).slice(0, 256),
        body,
        resolve,
        reject,
      };
      if (this.open.size < this.limits.parallel_max) this.begin(one);
      else this.waiting.push(one);
    });
    promise.catch(() => {}); // one that nobody waits for ends nothing
    return promise;
  }
}

// Let the model require 'appliance_model', and its calls go over this channel.
function install(channel, values) {
  const calls = new Calls(channel, values);
  const exported = { call: (...given) => calls.call(...given), CallFailed };
  const load = Module._load;
  Module._load = (name, ...more) => (name === 'appliance_model' ? exported : load(name, ...more));
  // What a model left behind when it answered must not end the process that answers the next caller.
  process.on('unhandledRejection', (reason) => {
    if (!(reason instanceof CallFailed)) throw reason;
    console.error(`a call that nobody waited for: ${reason.message}`);
  });
}

module.exports = { install };
