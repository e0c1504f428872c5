import { isUtf8 } from 'node:buffer';
import { createHash } from 'node:crypto';
import { z } from 'zod';
import { DomainError } from '../domain/decider.js';
import { AppendMessages } from '../domain/session.commands.js';
import { evolveErased, isActivity, isErased, type SessionState } from '../domain/session.state.js';
import { sessionDecider } from '../domain/session.js';
import {
  type EventData,
  moment,
  sessionEvents,
  type SessionEvent,
  sessionId,
  upcast,
} from '../domain/session.events.js';
import { type History, historiesIn, type HistoryForm, timeOf } from './histories.js';
import { isStorable, NOT_STORABLE } from '../http/json-body.js';
import { jsonPointer } from '../http/problem.js';
import { derivedId } from '../sessions/ids.js';
import { NewMessage } from '../sessions/session.schemas.js';
import {
  ExportAttestation,
  ExportedEvent,
  ExportedSession,
  ExportManifest,
  type ExportManifestData,
} from './export-format.js';

/** The input cannot be imported. The message is for operators and names the line. */
export class ImportRefused extends Error {
  override readonly name = 'ImportRefused';
}

/** Actor and correlation id of the events that an import adds. */
export const BY = { actor: 'system:import', correlationId: 'import' } as const;

/** Events of one session in order. A long session comes in several pieces, so that it need not fit in memory. */
export interface SessionPiece {
  readonly tenant: string;
  readonly sessionId: string;
  /** Whether these are the first events of the session. */
  readonly begins: boolean;
  readonly events: readonly ExportedEvent[];
  /** Bytes of the lines that these events were read from. */
  readonly bytes: number;
  /** Present if these are the last events of the session: the fold of all its events. */
  readonly end?: SessionFold;
}

/** Reads all sessions from the beginning, each time it is called. @throws ImportRefused */
export type ImportFormat = () => AsyncIterable<SessionPiece>;

type Bytes = () => AsyncIterable<Uint8Array>;

const PIECE_EVENTS = 1_000;
const PIECE_BYTES = 4 * 1024 * 1024;
/** Longest line, far above any event. Without a limit, a file without line ends would fill the memory. */
const LINE_BYTES = 64 * 1024 * 1024;

/**
 * Checks that an event can have happened to a session in this state.
 * @throws ImportRefused
 */
export function checkFollows(
  state: SessionState,
  event: Pick<ExportedEvent, 'type' | 'version' | 'incarnation'>,
): void {
  const { status, version, incarnation } = state;
  if (event.version !== version + 1) {
    throw new ImportRefused(`version ${event.version} comes after version ${version}`);
  }
  const isThere = status !== 'none' && !isErased(state);
  const fits = {
    SessionCreated: status === 'none' || status === 'deleted',
    SessionExpired: status === 'active',
    SessionResumed: status === 'expired',
    SessionErased: status !== 'none',
    ErasureScheduled: isThere,
    ErasureCancelled: isThere,
    other: status === 'active' || status === 'expired',
  };
  if (!fits[event.type in fits ? (event.type as keyof typeof fits) : 'other']) {
    throw new ImportRefused(`${event.type} cannot happen to a session whose status is ${status}`);
  }
  if (event.incarnation !== incarnation + (event.type === 'SessionCreated' ? 1 : 0)) {
    throw new ImportRefused(`it is not of incarnation ${event.incarnation}`);
  }
}

/** Folds the events of a session and checks that they can have happened in this order. */
export class SessionFold {
  state: SessionState = sessionDecider.initialState;
  time = '';
  createdAt = '';
  lastActivityAt = '';
  /** Whether nobody can tell what the last event left. */
  isErased = false;

  /** @throws ImportRefused */
  add(event: ExportedEvent): void {
    if (event.time < this.time) throw new ImportRefused('its time is before that of the event before');
    checkFollows(this.state, event);
    this.isErased = event.erased === true;
    this.state = event.erased
      ? evolveErased(this.state, event.type)
      : sessionDecider.evolve(this.state, current(event));
    this.time = event.time;
    if (event.type === 'SessionCreated') this.createdAt = event.time;
    if (isActivity(event)) this.lastActivityAt = event.time;
  }
}

/**
 * The event in the present schema version, by which its data is validated. The event is imported as it was recorded.
 */
function current({ type, schemaVersion, data }: ExportedEvent): SessionEvent {
  if (data === null) throw new ImportRefused('/data: is missing, and it is not said that it was erased');
  let lifted: Record<string, unknown>;
  try {
    lifted = upcast(type, schemaVersion, data);
  } catch (error) {
    throw new ImportRefused((error as Error).message);
  }
  return { type, data: parsed<unknown>(sessionEvents[type].data, lifted, 'data') } as SessionEvent;
}

/** Takes lines one by one and returns a piece when one is complete. Its methods throw ImportRefused. */
interface LineReader {
  take(value: object, bytes: Buffer): SessionPiece | undefined;
  end(): SessionPiece | undefined;
}

const reading = (bytes: Bytes, reader: () => LineReader): ImportFormat =>
  async function* () {
    const lines = reader();
    let number = 0;
    for await (const line of linesOf(bytes())) {
      number += 1;
      // Editors and other programs leave such lines, above all at the end.
      if (line.every((byte) => byte === 0x20 || byte === 0x0d || byte === 0x09)) continue;
      const piece = atLine(number, () => lines.take(jsonObject(line), line));
      if (piece) yield piece;
    }
    const rest = atLine(number + 1, () => lines.end());
    if (rest) yield rest;
  };

/** Reads the lines that `exportSessions` writes, and checks them against their manifest. */
export const readExport = (bytes: Bytes): ImportFormat => reading(bytes, () => new ExportLines());

/**
 * Plain lines `{sessionId, role, content, createdAt}`, the messages of a session together and in their order; also
 * `messageId`, and `name`, `toolCalls`, `toolCallId` as in a request. Ids that are not given follow from the line,
 * so that the same lines are the same events whenever they are read.
 */
export const readMessages = (bytes: Bytes, tenant: string): ImportFormat =>
  reading(bytes, () => new MessageLines(tenant));

/**
 * Conversations of other programs: JSON lines with one document each, or a single document.
 *
 * @param notTold time of the messages that do not say when they were written, in milliseconds
 */
export const readHistories = (
  bytes: Bytes,
  form: HistoryForm,
  tenant: string,
  notTold: number,
): ImportFormat =>
  async function* () {
    const seen = new Set<string>();
    for await (const { number, document } of documentsOf(bytes)) {
      const histories = atLine(number, () => {
        try {
          return historiesIn(document, form, tenant);
        } catch (error) {
          throw new ImportRefused((error as Error).message);
        }
      });
      for (const history of histories) {
        // The same conversation twice is one session.
        if (seen.has(history.sessionId)) continue;
        seen.add(history.sessionId);
        for (const piece of atLine(number, () => piecesOf(history, tenant, notTold))) yield piece;
      }
    }
  };

/** The documents of a file, and the line at which each begins. */
async function* documentsOf(bytes: Bytes): AsyncGenerator<{ number: number; document: unknown }> {
  let number = 0;
  let whole = false;
  for await (const line of linesOf(bytes())) {
    number += 1;
    const text = line.toString().trim();
    if (text === '') continue;
    let document: unknown;
    try {
      document = JSON.parse(text);
    } catch {
      // The document goes on in the next line.
      if (number > 1) throw new ImportRefused(`line ${number}: it is not JSON`);
      whole = true;
      break;
    }
    yield { number, document };
  }
  if (!whole) return;
  const pieces: Uint8Array[] = [];
  for await (const piece of bytes()) pieces.push(piece);
  try {
    yield { number: 1, document: JSON.parse(Buffer.concat(pieces).toString()) as unknown };
  } catch {
    throw new ImportRefused('it is neither JSON nor JSON lines');
  }
}

/** The events of a conversation. Its times never go back, and messages without one have that of the message before. */
function piecesOf(
  { sessionId, title, forkedFrom, messages }: History,
  tenant: string,
  notTold: number,
): SessionPiece[] {
  const lines = new MessageLines(tenant);
  let time = messages.find((one) => one.time !== undefined)?.time ?? notTold;
  const pieces: SessionPiece[] = [];
  const origin = {
    ...(title !== undefined && { title }),
    ...(forkedFrom && {
      // Its first event is the creation, and each message is one more.
      forkedFrom: { sessionId: forkedFrom.sessionId, version: forkedFrom.messages + 1 },
    }),
  };
  messages.forEach(({ message, time: given }, index) => {
    time = Math.max(time, given ?? time);
    const createdAt = new Date(time).toISOString();
    const line = { sessionId, createdAt, ...message };
    let piece: SessionPiece | undefined;
    try {
      piece = lines.take(line, Buffer.from(JSON.stringify(line)), origin);
    } catch (error) {
      throw error instanceof ImportRefused
        ? new ImportRefused(`message ${index + 1}: ${error.message}`)
        : error;
    }
    if (piece) pieces.push(piece);
  });
  const last = lines.end();
  return last ? [...pieces, last] : pieces;
}

/** Collects the events of the session that is being read, up to the size of a piece. */
class Gathering {
  readonly fold = new SessionFold();
  private events: ExportedEvent[] = [];
  private size = 0;
  private begins = true;

  constructor(
    readonly tenant: string,
    readonly sessionId: string,
  ) {}

  add(event: ExportedEvent, bytes: number): void {
    this.fold.add(event);
    this.events.push(event);
    this.size += bytes;
  }

  whenFull(): SessionPiece | undefined {
    return this.events.length >= PIECE_EVENTS || this.size >= PIECE_BYTES ? this.piece() : undefined;
  }

  last(): SessionPiece {
    return { ...this.piece(), end: this.fold };
  }

  private piece(): SessionPiece {
    const { tenant, sessionId, begins, events, size: bytes } = this;
    this.begins = false;
    this.events = [];
    this.size = 0;
    return { tenant, sessionId, begins, events, bytes };
  }
}

class ExportLines implements LineReader {
  private readonly hash = createHash('sha256');
  private session: Gathering | undefined;
  private before: { readonly tenant: string; readonly sessionId: string } | undefined;
  private sessions = 0;
  private events = 0;
  private isWhole = false;

  take(value: object, bytes: Buffer): SessionPiece | undefined {
    if (this.isWhole) throw new ImportRefused('something comes after the manifest');
    if ('manifest' in value) {
      this.check(parsed(ExportManifest, value).manifest);
      return undefined;
    }
    this.hash.update(bytes).update('\n');
    if ('session' in value) return this.ended(parsed(ExportedSession, value).session);
    if (!('checkpoint' in value) && !('statement' in value)) return this.event(value, bytes);
    parsed(ExportAttestation, value);
    return undefined;
  }

  end(): undefined {
    if (!this.isWhole) throw new ImportRefused('the manifest is missing: this is not a whole export');
  }

  private event(value: object, bytes: Buffer): SessionPiece | undefined {
    const given = parsed(ExportedEvent, value);
    const event = { ...given, time: new Date(given.time).toISOString() };
    if (event.erased && event.data !== null) throw new ImportRefused('/data: is there, and was erased');
    const { tenant, sessionId } = event;
    if (this.session && (this.session.tenant !== tenant || this.session.sessionId !== sessionId)) {
      throw new ImportRefused(`the last version of ${this.session.sessionId} is missing before it`);
    }
    if (!this.session) {
      const { before } = this;
      const isLater =
        !before || before.tenant < tenant || (before.tenant === tenant && before.sessionId < sessionId);
      if (!isLater) throw new ImportRefused('sessions must come in the order of tenant and id, each once');
      this.session = new Gathering(tenant, sessionId);
      this.before = this.session;
    }
    this.session.add(event, bytes.length);
    this.events += 1;
    return this.session.whenFull();
  }

  private ended(end: { tenant: string; sessionId: string; version: number }): SessionPiece {
    const { session } = this;
    if (session?.tenant !== end.tenant || session.sessionId !== end.sessionId) {
      throw new ImportRefused(`the events of ${end.sessionId} are missing before it`);
    }
    if (session.fold.state.version !== end.version) {
      throw new ImportRefused(`events are missing before it: version ${end.version} is the last one`);
    }
    if (session.fold.isErased) {
      throw new ImportRefused(
        `${end.sessionId} was erased while it was exported, and what says so is missing: export it again`,
      );
    }
    this.session = undefined;
    this.sessions += 1;
    return session.last();
  }

  private check(manifest: ExportManifestData): void {
    if (this.session) throw new ImportRefused(`the last version of ${this.session.sessionId} is missing`);
    if (manifest.sessions !== this.sessions || manifest.events !== this.events) {
      throw new ImportRefused(
        `there are ${this.sessions} sessions with ${this.events} events, and the manifest counts ` +
          `${manifest.sessions} with ${manifest.events}`,
      );
    }
    if (manifest.sha256 !== this.hash.digest('hex')) {
      throw new ImportRefused('the lines are not those that were exported: their SHA-256 is another one');
    }
    this.isWhole = true;
  }
}

const MessageLine = z.looseObject({
  sessionId,
  createdAt: z.union([
    moment,
    z
      .number()
      .positive()
      .transform((value) => new Date(timeOf({ createdAt: value }) ?? 0).toISOString()),
  ]),
  messageId: z.string().min(1).max(128).optional(),
});

class MessageLines implements LineReader {
  private session: Gathering | undefined;
  private readonly seen = new Set<string>();
  /** Ids of the messages of the session. */
  private messageIds = new Set<string>();

  constructor(private readonly tenant: string) {}

  /** @param details of the session, if this line begins it */
  take(
    value: object,
    bytes: Buffer,
    details: Partial<EventData<'SessionCreated'>> = {},
  ): SessionPiece | undefined {
    const { sessionId, createdAt, messageId, ...rest } = parsed(MessageLine, value);
    const message = parsed(NewMessage, rest);
    const time = new Date(createdAt).toISOString();
    let before: SessionPiece | undefined;
    if (this.session?.sessionId === sessionId) before = this.session.whenFull();
    else {
      if (this.seen.has(sessionId)) throw new ImportRefused('the lines of a session must stand together');
      this.seen.add(sessionId);
      before = this.session?.last();
      this.session = new Gathering(this.tenant, sessionId);
      this.messageIds = new Set();
      this.record(this.session, { type: 'SessionCreated', data: { ...details, imported: true } }, time, 0);
    }
    const { session } = this;
    const id =
      messageId ??
      derivedId('msg', this.tenant, sessionId, JSON.stringify([session.fold.state.version, value]));
    if (this.messageIds.has(id)) throw new ImportRefused(`the session has two messages of the id ${id}`);
    this.messageIds.add(id);
    const origin = { sessionId, messageId: id, createdAt: time };
    const command = new AppendMessages([
      { ...message, content: message.content ?? '', messageId: id, status: 'complete', origin },
    ]);
    try {
      for (const event of sessionDecider.decide(command, session.fold.state).events) {
        this.record(session, event, time, bytes.length);
      }
    } catch (error) {
      throw error instanceof DomainError ? new ImportRefused(error.message) : error;
    }
    return before;
  }

  end(): SessionPiece | undefined {
    return this.session?.last();
  }

  private record(session: Gathering, event: SessionEvent, time: string, bytes: number): void {
    const { tenant, sessionId } = session;
    const version = session.fold.state.version + 1;
    session.add(
      {
        ...event,
        id: derivedUuid(JSON.stringify([tenant, sessionId, version, time, event])),
        schemaVersion: sessionEvents[event.type].version,
        tenant,
        sessionId,
        incarnation: 1,
        version,
        time,
        ...BY,
        causationId: null,
      },
      bytes,
    );
  }
}

/** A UUID of version 8 (RFC 9562), whose bits follow from the text. */
function derivedUuid(text: string): string {
  const hex = createHash('sha256').update(text).digest('hex');
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-8${hex.slice(13, 16)}-a${hex.slice(17, 20)}-${hex.slice(20, 32)}`;
}

function atLine<T>(number: number, work: () => T): T {
  try {
    return work();
  } catch (error) {
    throw error instanceof ImportRefused ? new ImportRefused(`line ${number}: ${error.message}`) : error;
  }
}

/** @throws ImportRefused with the place of the first fault, but without the value, which may be personal */
function parsed<T>(schema: z.ZodType<T>, value: unknown, at = ''): T {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const [issue] = result.error.issues;
  const path = [...(at === '' ? [] : [at]), ...(issue?.path ?? [])];
  throw new ImportRefused(`${jsonPointer(path) || 'it'}: ${issue?.message ?? 'is not valid'}`);
}

// Only such an escape can bring in what cannot be stored; an escaped backslash before it costs a needless look.
const SUSPECT_ESCAPE = /\\u(?:0000|[dD][89a-fA-F])/;

function jsonObject(line: Buffer): object {
  if (!isUtf8(line)) throw new ImportRefused('it is not UTF-8');
  const text = line.toString();
  let value: unknown;
  try {
    value = SUSPECT_ESCAPE.test(text) ? JSON.parse(text, storable) : JSON.parse(text);
  } catch (error) {
    // The parser's own message quotes the line.
    throw error instanceof ImportRefused ? error : new ImportRefused('it is not JSON');
  }
  if (typeof value !== 'object' || value === null) throw new ImportRefused('it is not a JSON object');
  return value;
}

function storable(key: string, value: unknown): unknown {
  if (!isStorable(key) || (typeof value === 'string' && !isStorable(value))) {
    throw new ImportRefused(`it must not contain ${NOT_STORABLE}`);
  }
  return value;
}

/** The lines without their line ends, which the last line may lack. */
async function* linesOf(bytes: AsyncIterable<Uint8Array>): AsyncGenerator<Buffer> {
  let parts: Uint8Array[] = [];
  let length = 0;
  for await (let chunk of bytes) {
    for (let end = chunk.indexOf(10); end >= 0; end = chunk.indexOf(10)) {
      yield Buffer.concat([...parts, chunk.subarray(0, end)]);
      parts = [];
      length = 0;
      chunk = chunk.subarray(end + 1);
    }
    parts.push(chunk);
    length += chunk.length;
    if (length > LINE_BYTES) throw new ImportRefused(`a line is longer than ${LINE_BYTES} bytes`);
  }
  if (length > 0) yield Buffer.concat(parts);
}
