/*
 * Checks an export that was made with `--proof`, or the receipt of an erasure, without a server, a database or anything
 * else but Node.js and the public key of the notary:
 *
 *   node verify-export.js export.jsonl notary.pub
 *
 * This file stands alone and shares no code with the service that wrote the export, on purpose: whoever doubts the service
 * reads this file, or writes another one from docs/proof.md. It is to be read from top to bottom.
 *
 * What is checked, line by line:
 *
 * 1. `{"checkpoint": …}`: what the notary signed of a lane of the log: how many events it had (`size`), and a hash over all
 *    of them (the root of the Merkle tree of RFC 6962).
 * 2. `{"id": …, "proof": …}`: an event. From its data follows its commitment, from that and its envelope its leaf, and from
 *    the leaf and the hashes of `proof.path` the root. If that is the signed one, the log held exactly this event at exactly
 *    this position when the checkpoint was signed. Of an erased event the data is gone, and the commitment takes its place.
 * 3. `{"session": …, "statement": …}`: the notary's word which version was the last one of the session.
 * 4. `{"statement": …}`: the notary's word how many sessions and events the export has, and of what.
 */
import { createHash, createPublicKey, type KeyObject, verify } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { readFile, stat } from 'node:fs/promises';
import { createInterface } from 'node:readline';

/** Something that is not as the notary says. */
export interface Finding {
  /** Number of the line, from 1. */
  readonly line: number;
  readonly kind: 'added' | 'changed' | 'cut off' | 'left out' | 'not signed' | 'not covered';
  /** What is concerned: an event as tenant/session/version, or a session, lane or file. */
  readonly what: string;
  readonly message: string;
}

export interface VerifiedExport {
  readonly sessions: number;
  readonly events: number;
  /** Events that were erased: that they were there is proven, and not what they said. */
  readonly erased: number;
  /** Events of which only the envelope is proven, because they were sealed before there were commitments. */
  readonly withoutCommitment: number;
  /** What the export is of, as the notary signed it. */
  readonly claim: string;
  /** When it was signed, RFC 3339; empty when it was not. */
  readonly signedAt: string;
  readonly findings: readonly Finding[];
}

// --- JSON as RFC 8785 writes it, so that the same data is always the same text.

type Json = string | number | boolean | null | readonly Json[] | { readonly [name: string]: Json };

function canonical(value: Json): string {
  if (typeof value !== 'object' || value === null) return JSON.stringify(value);
  if (isArray(value)) return `[${value.map(canonical).join(',')}]`;
  const members = Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1));
  return `{${members.map(([name, member]) => `${JSON.stringify(name)}:${canonical(member)}`).join(',')}}`;
}

const isArray = (value: Json): value is readonly Json[] => Array.isArray(value);

/** A value for a message. */
const shown = (value: Json | undefined): string =>
  typeof value === 'string' ? value : JSON.stringify(value ?? null);

// --- The Merkle tree of RFC 6962: a leaf is hashed behind a byte 0, two children behind a byte 1.

const sha256 = (...parts: readonly (string | Buffer)[]): Buffer => {
  const hash = createHash('sha256');
  for (const part of parts) hash.update(part);
  return hash.digest();
};
const hashOfLeaf = (text: string): Buffer => sha256(Buffer.of(0), text);
const hashOfChildren = (left: Buffer, right: Buffer): Buffer => sha256(Buffer.of(1), left, right);

/**
 * The root of a tree of `size` leaves that has this leaf at `index` (from 0), by the hashes on the way from it to the root:
 * RFC 9162, section 2.1.3.2. Undefined when there are too few or too many hashes.
 */
function rootFrom(leaf: Buffer, index: number, size: number, path: readonly Buffer[]): Buffer | undefined {
  let [node, last] = [index, size - 1];
  let hash = leaf;
  for (const sibling of path) {
    if (last === 0) return undefined;
    if (node % 2 === 1 || node === last) {
      hash = hashOfChildren(sibling, hash);
      // Where the tree has no right neighbour, the node is its own parent.
      while (node % 2 === 0 && node !== 0) {
        node /= 2;
        last = Math.floor(last / 2);
      }
    } else {
      hash = hashOfChildren(hash, sibling);
    }
    node = Math.floor(node / 2);
    last = Math.floor(last / 2);
  }
  return last === 0 ? hash : undefined;
}

// --- Signed notes (C2SP signed-note): a text, an empty line, and lines `— name base64(4 bytes of key id, signature)`.

/** Public keys by name and id, from lines `name+id+base64`; empty lines and those that begin with # are passed over. */
export function readKeys(text: string): Map<string, KeyObject> {
  const keys = new Map<string, KeyObject>();
  for (const line of text.split('\n').map((one) => one.trim())) {
    if (line === '' || line.startsWith('#')) continue;
    const [, name = '', id = '', encoded = ''] = /^([^+\s]+)\+([0-9a-f]{8})\+(\S+)$/.exec(line) ?? [];
    const key = Buffer.from(encoded, 'base64');
    const expected = sha256(`${name}\n`, key).subarray(0, 4).toString('hex');
    // The first byte is the type of the key: 1 is Ed25519.
    if (key.length !== 33 || key[0] !== 1 || id !== expected)
      throw new Error(`this is no public key of a notary: ${line.slice(0, 200)}`);
    // What an Ed25519 key begins with in DER (RFC 8410).
    const der = Buffer.concat([Buffer.from('302a300506032b6570032100', 'hex'), key.subarray(1)]);
    keys.set(`${name} ${id}`, createPublicKey({ key: der, format: 'der', type: 'spki' }));
  }
  if (keys.size === 0) throw new Error('the file of keys has none');
  return keys;
}

/** The text of a note that one of the keys has signed; undefined when none has, or a signature of one is not right. */
export function openNote(note: unknown, keys: ReadonlyMap<string, KeyObject>): string | undefined {
  if (typeof note !== 'string') return undefined;
  const end = note.lastIndexOf('\n\n') + 1;
  const text = note.slice(0, end);
  let isSigned = false;
  for (const line of note.slice(end + 1).split('\n')) {
    const [, name = '', encoded = ''] = /^— (\S+) (\S+)$/.exec(line) ?? [];
    const bytes = Buffer.from(encoded, 'base64');
    const key = keys.get(`${name} ${bytes.subarray(0, 4).toString('hex')}`);
    if (!key) continue;
    if (!verify(null, Buffer.from(text), key, bytes.subarray(4))) return undefined;
    isSigned = true;
  }
  return isSigned ? text : undefined;
}

/** What a note says that is a statement: `colloquy/<kind>/v1` and a line of JSON. */
function openStatement(
  note: unknown,
  kind: string,
  keys: ReadonlyMap<string, KeyObject>,
): Record<string, Json> | undefined {
  const [title, json] = openNote(note, keys)?.split('\n') ?? [];
  return title === `colloquy/${kind}/v1` && json !== undefined
    ? (JSON.parse(json) as Record<string, Json>)
    : undefined;
}

// --- The export.

interface Checkpoint {
  readonly log: string;
  readonly size: number;
  readonly root: Buffer;
}

interface Event {
  readonly id: string;
  readonly type: string;
  readonly schemaVersion: number;
  readonly tenant: string;
  readonly sessionId: string;
  readonly incarnation: number;
  readonly version: number;
  readonly time: string;
  readonly actor: string;
  readonly correlationId: string;
  readonly causationId: string | null;
  readonly data: Json;
  readonly proof?: {
    readonly lane: number;
    readonly position: number;
    readonly salt?: string;
    readonly commitment?: string | null;
    readonly path: readonly string[];
  };
}

class Verification {
  readonly findings: Finding[] = [];
  readonly counts = { sessions: 0, events: 0, erased: 0, withoutCommitment: 0 };
  claim = 'nothing that is signed';
  signedAt = '';
  private readonly checkpoints = new Map<number, Checkpoint>();
  /** The session whose events are being read, the version of the last of them, and the first that is said to be erased. */
  private session: { readonly name: string; version: number; erased: Finding | undefined } | undefined;
  /** The export that the statements are of, and the number of the last session. */
  private exported: { readonly id: Json | undefined; number: number } | undefined;
  private readonly hash = createHash('sha256');
  private isClosed = false;
  private line = 0;

  constructor(private readonly keys: ReadonlyMap<string, KeyObject>) {}

  take(text: string): void {
    this.line += 1;
    if (this.isClosed) this.find('added', 'the file', 'it goes on behind its manifest');
    let value: Record<string, Json>;
    try {
      value = JSON.parse(text) as Record<string, Json>;
    } catch {
      this.find('changed', `line ${this.line}`, 'it is not JSON');
      return;
    }
    if ('manifest' in value) this.takeManifest(value['manifest'] as Record<string, Json>);
    else if ('checkpoint' in value) this.takeCheckpoint(value['checkpoint'] as Record<string, Json>);
    else if ('session' in value)
      this.takeSession(value['session'] as Record<string, Json>, value['statement']);
    else if ('statement' in value) this.takeStatement(value['statement']);
    else this.takeEvent(value as unknown as Event);
    this.hash.update(`${text}\n`);
  }

  end(): void {
    if (!this.isClosed) this.find('cut off', 'the file', 'its manifest is missing');
    if (this.signedAt === '')
      this.find('not signed', 'the file', 'the statement of the notary on the whole of it is missing');
  }

  private takeCheckpoint({ lane, note }: Record<string, Json>): void {
    const text = openNote(note, this.keys);
    const [origin = '', size = '', root = ''] = text?.split('\n') ?? [];
    const [, log, ofLane] = /^(colloquy\/[0-9a-f]+)\/lane\/(\d+)(?:\/generation\/\d+)?$/.exec(origin) ?? [];
    if (log === undefined || Number(ofLane) !== lane) {
      this.find('not signed', `lane ${shown(lane)}`, 'its checkpoint is not signed by a key that was given');
      return;
    }
    this.checkpoints.set(lane, { log, size: Number(size), root: Buffer.from(root, 'base64') });
  }

  private takeEvent(event: Event): void {
    const session = `${event.tenant}/${event.sessionId}`;
    const what = `${session}/${event.version}`;
    this.counts.events += 1;
    if (this.session?.name !== session) {
      if (this.session) this.find('left out', this.session.name, 'the end of the session is missing');
      this.session = { name: session, version: 0, erased: undefined };
    }
    const before = this.session.version;
    if (event.version > before + 1)
      this.find('left out', what, `versions ${before + 1} to ${event.version - 1} are missing before it`);
    if (event.version <= before) this.find('added', what, `it stands behind version ${before}`);
    this.session.version = Math.max(before, event.version);
    // Whoever takes data away could say that it was erased. The log then has the erasure behind it.
    const message = 'it is said to be erased, and the session has no erasure behind it';
    if (event.type === 'SessionErased') this.session.erased = undefined;
    else if (event.data === null) this.session.erased ??= { line: this.line, kind: 'changed', what, message };
    this.checkProof(event, what);
  }

  private checkProof({ proof, data, ...event }: Event, what: string): void {
    if (!proof) {
      this.find('not covered', what, 'it has no proof');
      return;
    }
    const { lane, position } = proof;
    const isErased = data === null;
    if (isErased) this.counts.erased += 1;
    else if (proof.commitment === null) this.counts.withoutCommitment += 1;
    const commitment =
      isErased || proof.commitment === null
        ? (proof.commitment ?? null)
        : sha256(proof.salt ?? '', canonical(data)).toString('hex');
    const { actor, causationId, correlationId, id, incarnation, schemaVersion } = event;
    const { sessionId, tenant, time, type, version } = event;
    const leaf = hashOfLeaf(
      canonical({
        ...{ actor, causationId, commitment, correlationId, id, incarnation, lane, position },
        ...{ schemaVersion, sessionId, tenant, time, type, version },
      }),
    );
    const checkpoint = this.checkpoints.get(lane);
    if (!checkpoint) {
      this.find('not covered', what, `the file has no signed checkpoint of lane ${lane}`);
    } else if (position > checkpoint.size) {
      const message = `it is at position ${position} of lane ${lane}, whose checkpoint is of ${checkpoint.size} events: an older one`;
      this.find('not covered', what, message);
    } else {
      const path = proof.path.map((hash) => Buffer.from(hash, 'base64'));
      const root = rootFrom(leaf, position - 1, checkpoint.size, path);
      if (!root?.equals(checkpoint.root))
        this.find('changed', what, `the log did not have it at position ${position} of lane ${lane}`);
    }
  }

  private takeSession(session: Record<string, Json>, statement: unknown): void {
    this.counts.sessions += 1;
    const name = `${shown(session['tenant'])}/${shown(session['sessionId'])}`;
    const last = this.session?.name === name ? this.session.version : 0;
    if (this.session && this.session.name !== name)
      this.find('left out', this.session.name, 'the end of the session is missing');
    if (this.session?.name === name && this.session.erased) this.findings.push(this.session.erased);
    this.session = undefined;
    const signed = openStatement(statement, 'session', this.keys);
    if (!signed) {
      this.find(
        'not signed',
        name,
        'the statement on its last version is not signed by a key that was given',
      );
      return;
    }
    if (`${shown(signed['tenant'])}/${shown(signed['sessionId'])}` !== name)
      this.find('changed', name, 'the statement is of another session');
    const version = Number(signed['version']);
    if (last < version) this.find('cut off', name, `it ends at version ${last}, and had version ${version}`);
    if (last > version)
      this.find('added', name, `it ends at version ${last}, and had version ${version} only`);
    this.exported ??= { id: signed['export'], number: 0 };
    if (signed['export'] !== this.exported.id)
      this.find('added', name, 'it comes from another export than the sessions before');
    const number = Number(signed['number']);
    const between = number - this.exported.number - 1;
    if (between > 0) this.find('left out', name, `${between} sessions are missing before it`);
    if (between < 0) this.find('added', name, 'it is not where it stood in the export');
    this.exported.number = Math.max(number, this.exported.number);
  }

  private takeStatement(statement: unknown): void {
    const signed = openStatement(statement, 'export', this.keys);
    if (!signed) return;
    this.signedAt = shown(signed['time']);
    this.claim = shown(signed['claim']);
    const { sessions, events } = this.counts;
    for (const [lane, { log }] of this.checkpoints)
      if (log !== signed['log']) this.find('changed', `lane ${lane}`, 'its checkpoint is of another log');
    if (this.exported && signed['export'] !== this.exported.id)
      this.find('changed', 'the file', 'the statement on the whole of it is of another export');
    const missing = Number(signed['sessions']) - sessions;
    if (missing > 0) {
      const behind = Number(signed['sessions']) - (this.exported?.number ?? 0);
      const where = behind > 0 ? `, ${behind} of them the last` : '';
      this.find('left out', 'the file', `it has ${missing} sessions less than were exported${where}`);
    }
    if (missing < 0) this.find('added', 'the file', `it has ${-missing} sessions more than were exported`);
    const difference = events - Number(signed['events']);
    if (difference !== 0)
      this.find(
        difference < 0 ? 'left out' : 'added',
        'the file',
        `it has ${events} events, not ${shown(signed['events'])}`,
      );
  }

  private takeManifest(manifest: Record<string, Json>): void {
    this.isClosed = true;
    if (this.session) this.find('left out', this.session.name, 'the end of the session is missing');
    if (manifest['sha256'] !== this.hash.copy().digest('hex'))
      this.find('changed', 'the file', 'it is not what its manifest has the hash of');
  }

  private find(kind: Finding['kind'], what: string, message: string): void {
    this.findings.push({ line: this.line, kind, what, message });
  }
}

/**
 * Checks an export. It is read once, and memory grows with what is found alone.
 * @param keys the text of a file of public keys
 * @throws when a file cannot be read, or the keys are none
 */
export async function verifyExport(file: string, keys: string): Promise<VerifiedExport> {
  const verification = new Verification(readKeys(keys));
  for await (const line of createInterface({ input: createReadStream(file), crlfDelay: Infinity }))
    verification.take(line);
  verification.end();
  const { counts, claim, signedAt, findings } = verification;
  return { ...counts, claim, signedAt, findings };
}

// --- The receipt of an erasure: the same as it is signed in its `statement`.

/** @returns what is wrong with the receipt; nothing when it is as the notary signed it */
export function verifyReceipt(receipt: Record<string, Json>, keys: string): string | undefined {
  const { statement, ...said } = receipt;
  const signed = openStatement(statement, 'erasure', readKeys(keys));
  if (!signed) return 'it is not signed by a key that was given';
  const { log: _, ...rest } = signed;
  return canonical(rest) === canonical(said) ? undefined : 'it is not what was signed';
}

/** Bytes; a larger file is an export. */
const LARGEST_RECEIPT = 64 * 1024 * 1024;

/** The receipts in a file: one, or the answer of `GET /v1/sessions/:id/erasure`; undefined when it is something else. */
export async function receiptsIn(file: string): Promise<Record<string, Json>[] | undefined> {
  if ((await stat(file)).size > LARGEST_RECEIPT) return undefined;
  let value: Json;
  try {
    value = JSON.parse(await readFile(file, 'utf8')) as Json;
  } catch {
    return undefined;
  }
  const found = (value as { data?: Json } | null)?.data ?? value;
  const receipts = isArray(found) ? found : [found];
  const isReceipt = (one: Json): boolean => typeof one === 'object' && one !== null && 'erasedAt' in one;
  return receipts.every(isReceipt) ? (receipts as Record<string, Json>[]) : undefined;
}

// --- When the file is run by itself.

async function main([file = '', keyFile = '']: readonly string[]): Promise<void> {
  const keys = await readFile(keyFile, 'utf8');
  const receipts = await receiptsIn(file);
  if (receipts) {
    for (const receipt of receipts) {
      const fault = verifyReceipt(receipt, keys);
      console.log(`${shown(receipt['sessionId'])} at ${shown(receipt['erasedAt'])}: ${fault ?? 'signed'}`);
      if (fault !== undefined) process.exitCode = 1;
    }
    return;
  }
  const { findings, ...found } = await verifyExport(file, keys);
  for (const { line, kind, what, message } of findings)
    console.log(`line ${line}: ${kind}: ${what}: ${message}`);
  console.log(JSON.stringify({ ...found, findings: findings.length }));
  if (findings.length > 0) process.exitCode = 1;
}

if (require.main === module) void main(process.argv.slice(2));
