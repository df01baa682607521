// The Node runner: the process inside a sandbox that loads one model and answers its calls.
//
// Owns: the guest half of PROTOCOL.md for JavaScript; Node's own modules only, one file.
// Never: is trusted. Model code runs in this very process and may do to it what it likes.
// Read next: PROTOCOL.md, monitor.pl (the process above this one), node_calling.js.
//
// A model: `entry = "model.js:Model"`, a class with constructor(path) and predict(inputs), or a
// function that takes the path and returns a function or an object with predict. Any of them may
// be async. Inputs: JSON as objects, text as a string, anything else as a Buffer.
'use strict';

const fs = require('fs');
const net = require('net');
const path = require('path');

const SOCKET = process.env.APPLIANCE_SOCKET || '/run/app/a.sock';

class Fault extends Error {
  constructor(kind, message) {
    super(message);
    this.kind = kind;
  }
}

// Frames over the connection.
class Channel {
  constructor(socket) {
    this.socket = socket;
    this.pieces = [];
    this.held = 0;
    this.wanted = 0;
    this.wake = null;
    socket.on('data', (piece) => {
      this.pieces.push(piece);
      this.held += piece.length;
      if (this.wake && this.held >= this.wanted) this.wake();
      if (this.held > 4 << 20 && this.held >= this.wanted) socket.pause();
    });
    socket.on('close', () => process.exit(0)); // the appliance is gone
    socket.on('error', () => process.exit(0));
  }

  async bytes(size) {
    if (this.held < size) {
      this.wanted = size;
      this.socket.resume();
      await new Promise((done) => { this.wake = done; });
      this.wake = null;
      this.wanted = 0;
    }
    const out = [];
    let left = size;
    while (left > 0) {
      const piece = this.pieces[0];
      if (piece.length <= left) {
        out.push(this.pieces.shift());
        left -= piece.length;
      } else {
        out.push(piece.subarray(0, left));
        this.pieces[0] = piece.subarray(left);
        left = 0;
      }
    }
    this.held -= size;
    this.socket.resume();
    return out.length === 1 ? out[0] : Buffer.concat(out, size);
  }

  async receive() {
    const prefix = await this.bytes(12);
    const header = JSON.parse((await this.bytes(prefix.readUInt32BE(0))).toString());
    return [header, await this.bytes(Number(prefix.readBigUInt64BE(4)))];
  }

  send(header, body = Buffer.alloc(0)) {
    const text = Buffer.from(JSON.stringify(header));
    const prefix = Buffer.alloc(12);
    prefix.writeUInt32BE(text.length, 0);
    prefix.writeBigUInt64BE(BigInt(body.length), 4);
    this.socket.write(Buffer.concat([prefix, text]));
    if (body.length) this.socket.write(body);
  }
}

// The CHUNK frames after a LOAD as one stream.
class Chunks {
  constructor(channel) {
    this.channel = channel;
    this.pending = Buffer.alloc(0);
    this.last = false;
  }

  // Between 1 and size bytes; none at the end.
  async some(size) {
    while (!this.pending.length && !this.last) {
      const [header, body] = await this.channel.receive();
      this.last = Boolean(header.last);
      this.pending = body;
    }
    const piece = this.pending.subarray(0, size);
    this.pending = this.pending.subarray(piece.length);
    return piece;
  }

  async exactly(size) {
    const parts = [];
    let left = size;
    while (left > 0) {
      const piece = await this.some(left);
      if (!piece.length) break;
      parts.push(piece);
      left -= piece.length;
    }
    return Buffer.concat(parts);
  }
}

function textOf(field) {
  const end = field.indexOf(0);
  return (end < 0 ? field : field.subarray(0, end)).toString();
}

function numberOf(field) {
  if (field[0] & 0x80) return Number(field.readBigUInt64BE(field.length - 8));
  return parseInt(textOf(field).trim() || '0', 8);
}

// The records of a pax header: lines of "<length> <key>=<value>".
function recordsOf(data) {
  const found = {};
  while (data.length) {
    const space = data.indexOf(0x20);
    const length = parseInt(data.subarray(0, space).toString(), 10);
    const record = data.subarray(space + 1, length - 1).toString();
    const equals = record.indexOf('=');
    found[record.slice(0, equals)] = record.slice(equals + 1);
    data = data.subarray(length);
  }
  return found;
}

// Write the regular files and folders of a tar stream (ustar, pax, GNU names).
async function unpack(source, folder) {
  let extra = {};
  for (;;) {
    const head = await source.exactly(512);
    if (head.length < 512 || head.every((byte) => byte === 0)) break;
    const kind = String.fromCharCode(head[156]);
    let size = numberOf(head.subarray(124, 136));
    if ('xgL'.includes(kind)) {
      const data = (await source.exactly(Math.ceil(size / 512) * 512)).subarray(0, size);
      if (kind === 'x') Object.assign(extra, recordsOf(data));
      if (kind === 'L') extra.path = textOf(data);
      continue;
    }
    let name = textOf(head.subarray(0, 100));
    if (head.subarray(257, 263).toString('latin1') === 'ustar\0' && head[345]) {
      name = `${textOf(head.subarray(345, 500))}/${name}`;
    }
    if (extra.size !== undefined) size = Number(extra.size);
    await writeMember(source, folder, extra.path || name, kind, size);
    extra = {};
  }
  while ((await source.some(1 << 20)).length);
}

async function writeMember(source, folder, given, kind, size) {
  const name = path.posix.normalize(given);
  if (name.startsWith('/') || name.startsWith('..') || !'0\u00005'.includes(kind)) {
    throw new Fault('input', `The artifact holds an unsafe or special file: '${name}'.`);
  }
  const target = path.join(folder, name);
  if (kind === '5') {
    fs.mkdirSync(target, { recursive: true });
    return;
  }
  fs.mkdirSync(path.dirname(target), { recursive: true });
  const out = fs.openSync(target, 'w');
  for (let left = size; left > 0;) {
    const piece = await source.some(Math.min(left, 1 << 20));
    if (!piece.length) throw new Fault('input', 'The artifact ends in the middle of a file.');
    for (let at = 0; at < piece.length;) at += fs.writeSync(out, piece, at);
    left -= piece.length;
  }
  fs.closeSync(out);
  await source.exactly((512 - (size % 512)) % 512);
}

// The function that answers calls, made from "file.js:name".
async function predictorOf(entry, folder) {
  const at = entry.lastIndexOf(':');
  const [file, name] = [entry.slice(0, at), entry.slice(at + 1)];
  if (!fs.existsSync(path.join(folder, file))) {
    throw new Fault('entry', `The artifact has no file '${file}'.`);
  }
  let target = require(path.join(folder, file));
  for (const part of name.split('.')) {
    if (target === null || target === undefined || !(part in Object(target))) {
      throw new Fault('entry', `'${file}' exports no '${name}'.`);
    }
    target = target[part];
  }
  if (typeof target !== 'function') {
    throw new Fault('entry', `'${entry}' is no class and no function.`);
  }
  const isClass = /^class\b/.test(Function.prototype.toString.call(target))
    || typeof (target.prototype || {}).predict === 'function';
  const made = isClass ? new target(folder) : await target(folder);
  if (!isClass && typeof made === 'function') return made;
  if (made && typeof made.predict === 'function') return (inputs) => made.predict(inputs);
  throw new Fault('entry', `'${entry}' has no method 'predict'.`);
}

function inputsOf(contentType, body) {
  const media = contentType.split(';')[0].trim().toLowerCase();
  const isJson = media === 'application/json' || media.endsWith('+json');
  if (!isJson && !media.startsWith('text/')) return body;
  try {
    const text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(body);
    return isJson ? JSON.parse(text) : text;
  } catch (error) {
    throw new Fault('input', `The body is not valid ${media}: ${error.message}.`);
  }
}

function plain(key, value) {
  return ArrayBuffer.isView(value) && !(value instanceof DataView) ? Array.from(value) : value;
}

function answerOf(answer) {
  if (typeof answer === 'string') return ['text/plain; charset=utf-8', Buffer.from(answer)];
  if (answer instanceof ArrayBuffer) return ['application/octet-stream', Buffer.from(answer)];
  if (answer instanceof Uint8Array) {
    const bytes = Buffer.from(answer.buffer, answer.byteOffset, answer.byteLength);
    return ['application/octet-stream', bytes];
  }
  let text;
  try {
    text = JSON.stringify(answer, plain); // NaN and infinities become null by themselves
  } catch (error) {
    throw new Fault('unsupported', `The answer cannot be sent: ${error.message}.`);
  }
  if (text === undefined) {
    throw new Fault('unsupported', `The answer cannot be sent: it is ${typeof answer}.`);
  }
  return ['application/json', Buffer.from(text)];
}

// ERR members for whatever was thrown; the trace holds the model's own lines.
function faultOf(error) {
  if (error instanceof Fault) return { kind: error.kind, detail: error.message.slice(0, 1500) };
  const isError = error instanceof Error;
  const detail = isError ? `${error.name}: ${error.message}` : `thrown: ${String(error)}`;
  const found = { kind: 'raised', detail: detail.slice(0, 1500), trace: [] };
  if (isError && /^(ERR_)?MODULE_NOT_FOUND$/.test(error.code)) {
    found.kind = 'import';
    found.missing = (/Cannot find (?:module|package) '([^']*)'/.exec(error.message) || [])[1] || '';
    if (found.missing === 'appliance_model') {
      const detail = 'require("appliance_model") is there for models that declare calls = ["OTHER"].';
      return { kind: 'raised', detail };
    }
  }
  if (/Array buffer allocation failed/.test(detail)) found.kind = 'memory';
  const lines = isError ? String(error.stack).split('\n') : [];
  const kept = lines.filter((line) => !/node_runner\.js|node:internal/.test(line));
  let left = 6000;
  for (const line of kept.slice(0, 60)) {
    left -= line.length + 8;
    if (left < 0) break;
    found.trace.push(line.slice(0, 500));
  }
  return found;
}

function report(channel, id, error) {
  let members;
  try {
    members = faultOf(error);
    if (Buffer.byteLength(JSON.stringify(members)) > 15000) {
      members = { kind: members.kind, detail: members.detail.slice(0, 500) };
    }
  } catch {
    members = { kind: 'raised', detail: 'something that cannot be shown was thrown' };
  }
  channel.send({ type: 'ERR', id, ...members });
}

async function load(channel, header) {
  const folder = header.path || '/model';
  if (header.proxy) {
    for (const name of ['http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY']) process.env[name] = header.proxy;
    process.env.no_proxy = process.env.NO_PROXY = 'localhost,127.0.0.1,::1';
  }
  await unpack(new Chunks(channel), folder);
  const own = path.join(folder, 'node_modules');
  if (header.deps && !fs.existsSync(own)) { // where require() and import both look
    fs.symlinkSync(path.join(header.deps, 'node_modules'), own);
  }
  process.chdir(folder);
  if (header.calls) require('./node_calling.js').install(channel, { inputsOf, answerOf });
  return predictorOf(header.entry, folder);
}

async function serve(channel) {
  let predict = null;
  for (;;) {
    const [header, body] = await channel.receive();
    const id = header.id || '';
    const started = process.hrtime.bigint();
    const spent = () => Number((process.hrtime.bigint() - started) / 1000n);
    try {
      if (header.type === 'LOAD') {
        predict = await load(channel, header);
        channel.send({ type: 'READY', compute_us: spent() });
      } else {
        if (!predict) throw new Fault('entry', 'No model is loaded.');
        const [kind, reply] = answerOf(await predict(inputsOf(header.content_type || '', body)));
        channel.send({ type: 'RES', id, content_type: kind, compute_us: spent() }, reply);
      }
    } catch (error) {
      report(channel, id, error);
    }
  }
}

const channel = new Channel(net.connect(SOCKET));
channel.send({
  type: 'HELLO', proto: 1, role: 'runner', runtime: 'node', version: process.versions.node,
  concurrency: 1,
});
serve(channel);
