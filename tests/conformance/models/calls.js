'use strict';
const { call, CallFailed } = require('appliance_model');

async function outcome(promise) {
  try {
    return await promise;
  } catch (error) {
    if (!(error instanceof CallFailed)) throw error;
    return error;
  }
}

const told = (found) => (found instanceof CallFailed ? `${found.code} ${found.status} ${found.message}` : found);

// The conformance model that calls: text is a command.
module.exports.Model = class {
  constructor() {
    this.early = outcome(call('echo', 1));
  }

  async predict(inputs) {
    const at = inputs.indexOf(' ');
    const [word, rest] = at < 0 ? [inputs, ''] : [inputs.slice(0, at), inputs.slice(at + 1)];
    switch (word) {
      case 'early': return (await this.early).message;
      case 'text': return call('echo:3', rest);
      case 'values': return call('echo', { a: [1, 2.5, null, true], b: { c: 'ü' } });
      case 'bytes': return call('echo@live', Buffer.from([...Array(256).keys()]));
      case 'typed': return call('echo', rest, { contentType: 'application/json' });
      case 'refused': return told(await outcome(call(rest, 1)));
      case 'through': return call(rest, 1);
      case 'large': return told(await outcome(call('echo', 'x'.repeat(Number(rest)))));
      case 'many': return Promise.all([...Array(Number(rest)).keys()].map((n) => call('echo', n)));
      case 'leave':
        this.left = outcome(call('slow', 1));
        (async () => { await call('slow', 1); })(); // and nobody waits for this one
        await call('second', 1);
        return 'done';
      case 'left': return (await this.left).message;
      default: throw new Error(word);
    }
  }
};
