import { type EventPlace } from '../event-store/lane-reader.js';
import { type EventLog } from '../event-store/log.js';
import {
  KeyDestroyed,
  KeyMissing,
  NoKeys,
  type PayloadCodec,
  type SealedPayload,
} from '../event-store/payload-codec.js';
import { type ConsumedEvent, isOfCell, placeOf, sealedIn, toEvent, type UnknownEvent } from './contract.js';
import { type IncomingMessage } from './group-member.js';
import { type KafkaSettings } from './kafka-connection.js';
import { readTopic } from './topic-tail.js';

/** An event that was published and is no longer in the log. */
export interface LostEvent {
  readonly tenant: string;
  readonly sessionId: string;
  readonly version: number;
  readonly incarnation: number;
  /** The generation of the log in which it was appended. */
  readonly generation: number;
  readonly id: string;
  readonly time: string;
  readonly correlationId: string;
  /**
   * Undefined where the record holds a reference, or is newer than this code. It has `sealed` where its key is lost: it was
   * in the end of the log that is gone.
   */
  readonly event: ConsumedEvent | UnknownEvent | undefined;
}

/**
 * The events of a topic that were in the log until it was set back, in no particular order. The whole topic is read.
 * @param cell the cell whose log it is, unless it is the first
 * @param onRecord called for each record
 */
export async function lostEvents(
  kafka: KafkaSettings,
  topic: string,
  { generations, codec }: Pick<EventLog, 'generations' | 'codec'>,
  cell: string | undefined,
  onRecord: () => void = () => undefined,
): Promise<LostEvent[]> {
  /** By id: a record can be there several times. */
  const lost = new Map<string, Omit<LostEvent, 'event'> & { readonly record: IncomingMessage }>();
  await readTopic(kafka, topic, Infinity, (record) => {
    onRecord();
    const { headers } = record;
    if (!isOfCell(record, cell)) return;
    if (headers['ce_id'] === undefined || headers['ce_subject'] === undefined || !isCut(headers, generations))
      return;
    const { tenant, sessionId, version, generation } = placeOf(record);
    lost.set(headers['ce_id'], {
      ...{ tenant, sessionId, version, generation },
      incarnation: Number(headers['ce_incarnation']),
      id: headers['ce_id'],
      time: headers['ce_time'] ?? '',
      correlationId: headers['ce_correlationid'] ?? '',
      record,
    });
  });
  const found = [...lost.values()];
  const events = await read(
    found.map(({ record }) => record),
    codec,
  );
  return found.map(({ record: _, ...place }, index) => ({ ...place, event: events[index] }));
}

/** What the records say; undefined for one that this code cannot read. */
async function read(records: readonly IncomingMessage[], codec: PayloadCodec): Promise<LostEvent['event'][]> {
  const payloads = records.map((record) => attempted(() => sealedIn(record)));
  const results = (
    await open(
      payloads.filter((payload) => payload !== undefined),
      codec,
    )
  ).values();
  return records.map((record, index) => {
    const result = payloads[index] && results.next().value;
    return attempted(() => toEvent(record, result && openedIn(result)));
  });
}

async function open(
  payloads: readonly SealedPayload[],
  codec: PayloadCodec,
): Promise<readonly PromiseSettledResult<Buffer>[]> {
  try {
    return await codec.openText(payloads);
  } catch (error) {
    // Without master keys the log has no key at all any more: all that it had were in the end that is gone.
    if (!(error instanceof NoKeys)) throw error;
    return payloads.map((payload) => ({
      status: 'rejected',
      reason: new KeyMissing(payload, payload.keyId),
    }));
  }
}

/**
 * @returns null for what was erased; undefined for what nobody can open any more
 * @throws NotAuthentic
 */
function openedIn(result: PromiseSettledResult<Buffer>): Record<string, unknown> | null | undefined {
  if (result.status === 'fulfilled') return JSON.parse(result.value.toString()) as Record<string, unknown>;
  if (result.reason instanceof KeyDestroyed) return null;
  if (result.reason instanceof KeyMissing) return undefined;
  throw result.reason;
}

function attempted<T>(work: () => T): T | undefined {
  try {
    return work();
  } catch {
    return undefined;
  }
}

/** Whether an event was gone when a later generation of the log began, so that consumers are told of it. */
export function isCut(
  headers: IncomingMessage['headers'],
  generations: Pick<EventLog, 'generations'>['generations'],
): boolean {
  const { lane, position } = publishedPlace(headers);
  const of = Number(headers['ce_loggeneration'] ?? 1);
  const time = Date.parse(headers['ce_time'] ?? '');
  return generations
    .since(of)
    .some(({ since, ends }) => position > (ends[lane] ?? 0) && time <= Date.parse(since));
}

/** A record that is none of ours has a place where nothing is. */
export function publishedPlace(headers: Readonly<Record<string, string>>): EventPlace {
  const number = (name: string): number =>
    /^\d{1,15}$/.test(headers[name] ?? '') ? Number(headers[name]) : 0;
  const lane = number('ce_lane');
  return {
    lane: lane < 32_768 ? lane : 0,
    position: number('ce_position'),
    id: headers['ce_id'] ?? '',
  };
}
