import { type EventLog } from '../event-store/log.js';
import { isOfCell, truncationOf } from './contract.js';
import { isForbidden } from './kafkajs.js';
import { isCut, publishedPlace } from './lost-events.js';
import { type KafkaSettings } from './kafka-connection.js';
import { type RelayCheckpoints } from './relay-checkpoints.js';
import { newestRecords } from './topic-tail.js';
import { type FoundTopic, type NewTopic, TopicAdmin } from './topic-admin.js';

/**
 * The topic is not the one to which events were published so far. Publishing to it could break the order of a session's
 * events.
 */
export class TopicMismatch extends Error {}

/**
 * Finds the topic or creates it, and compares it with the one to which events were published so far.
 * @throws TopicMismatch when an operator has to decide what to do
 */
export async function settleTopic(
  kafka: KafkaSettings,
  wanted: NewTopic,
  checkpoints: RelayCheckpoints,
  log: Pick<EventLog, 'lanes' | 'generations'>,
  cell?: string,
): Promise<FoundTopic> {
  const { topic } = wanted;
  const recorded = await checkpoints.recordedTopic();
  if (recorded && recorded.topic !== topic) {
    throw new TopicMismatch(
      `events are published to the topic ${recorded.topic} so far, and the settings name ${topic}. Name the old one ` +
        'again, or have everything published anew: `colloquy relay anew`',
    );
  }
  const found = await TopicAdmin.use(kafka, (topics) =>
    findOrCreate(topics, wanted, checkpoints, log.generations.current),
  );
  const { partitions: expected, database } = await checkpoints.recordTopic({
    topic,
    partitions: found.partitions,
  });
  if (found.partitions !== expected) {
    throw new TopicMismatch(
      `the topic ${topic} has ${found.partitions} partitions, and events were published to ${expected} so far: each ` +
        'session would go on in another one, past consumers that have not seen its beginning. Give the relay a new ' +
        'topic, which is published from the first event on',
    );
  }
  const name = await checkpoints.thisDatabase();
  if (name !== database) {
    try {
      await compare(kafka, topic, log, cell);
      await checkpoints.recordDatabase(name);
    } catch (error) {
      // A publisher may lack the permission to read the topic: then nobody can tell, and it publishes as it may.
      if (!isForbidden(error)) throw error;
    }
  }
  return found;
}

/**
 * Looks whether the newest events of the topic are in the log, or were in it before it was set back: by a restore, or the
 * failover to a replica that had not got them. Consumers are told of the latter. Others are of another log that is
 * published to the topic, or were written after that: positions and versions of sessions would be given out twice, and
 * consumers would take the second for a repetition of the first, and drop it.
 * @throws TopicMismatch
 */
async function compare(
  kafka: KafkaSettings,
  topic: string,
  { lanes, generations }: Pick<EventLog, 'lanes' | 'generations'>,
  cell: string | undefined,
): Promise<void> {
  const newest = await newestRecords(kafka, topic);
  const records = newest.filter((record) => isOfCell(record, cell) && !truncationOf(record));
  const missing = await lanes.missing(records.map(({ headers }) => publishedPlace(headers)));
  const strange = records.filter(
    ({ headers }) => missing.has(headers['ce_id'] ?? '') && !isCut(headers, generations),
  );
  if (strange.length === 0) return;
  const times = strange.map(({ headers }) => headers['ce_time'] ?? '').sort();
  throw new TopicMismatch(
    `the topic ${topic} has events that this log has not and never had: ${strange.length} of the newest, the last of ` +
      `${times.at(-1) ?? 'an unknown time'}. Does another service publish to it, of a copy of the database for ` +
      'instance? Each needs a topic of its own: name a new one in `kafka.topic`, run `colloquy relay anew`, and let ' +
      'the consumers begin with it; docs/operations.md has more',
  );
}

async function findOrCreate(
  topics: TopicAdmin,
  wanted: NewTopic,
  checkpoints: RelayCheckpoints,
  generation: number,
): Promise<FoundTopic> {
  const existing = await topics.find(wanted.topic);
  if (existing) return existing;
  // The topic is new, or it was deleted with all its records: either way it begins with the first event.
  await checkpoints.beginAnew(generation);
  await topics.create(wanted);
  const created = await topics.find(wanted.topic);
  if (!created) throw new Error(`the topic ${wanted.topic} was created and cannot be found yet`);
  return created;
}
