import { type EventPlace } from '../event-store/lane-reader.js';
import { type EventLog } from '../event-store/log.js';
import { type ConsumedEvent, isOfCell, placeOf, toEvent, type UnknownEvent } from './contract.js';
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
  /** Undefined where the record holds a reference, or is newer than this code. */
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
  { generations }: Pick<EventLog, 'generations'>,
  cell: string | undefined,
  onRecord: () => void = () => undefined,
): Promise<LostEvent[]> {
  /** By id: a record can be there several times. */
  const lost = new Map<string, LostEvent>();
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
      event: readable(record),
    });
  });
  return [...lost.values()];
}

function readable(record: IncomingMessage): LostEvent['event'] {
  try {
    return toEvent(record);
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
