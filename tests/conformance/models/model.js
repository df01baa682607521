'use strict';
const fs = require('fs');
const { spawnSync } = require('child_process');

// The conformance model: text is a command, anything else comes back.
class Model {
  constructor(folder) {
    this.folder = folder;
    this.held = [];
  }

  async predict(inputs) {
    if (Buffer.isBuffer(inputs)) return Buffer.from(inputs).reverse();
    if (typeof inputs !== 'string') return inputs;
    const at = inputs.indexOf(' ');
    const [word, rest] = at < 0 ? [inputs, ''] : [inputs.slice(0, at), inputs.slice(at + 1)];
    switch (word) {
      case 'raise': throw new Error('as asked');
      case 'exit': process.exit(Number(rest));
      case 'spin': for (;;);
      case 'print': console.log(rest); return 'printed';
      case 'noise': for (let n = 0; n < 2000; n += 1) console.log('x'.repeat(1000)); return 'done';
      case 'nan': return [NaN, { x: Infinity }, 1.5];
      case 'eat': for (;;) this.held.push(new Array(1 << 17).fill(this.held.length + 0.5));
      case 'read': return fs.readFileSync(rest, 'utf8');
      case 'run': return spawnSync('/bin/sh', ['-c', rest]).stdout.toString();
      case 'unsendable': return () => 1;
      default: return inputs;
    }
  }
}

module.exports = { Model };
