import { type EventPlace, type LaneReader } from '../event-store/lane-reader.js';
import { isForbidden } from './kafkajs.js';
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
  lanes: Pick<LaneReader, 'missing'>,
): Promise<FoundTopic> {
  const { topic } = wanted;
  const recorded = await checkpoints.recordedTopic();
  if (recorded && recorded.topic !== topic) {
    throw new TopicMismatch(
      `events are published to the topic ${recorded.topic} so far, and the settings name ${topic}. Name the old one ` +
        'again, or have everything published anew: `colloquy relay anew`',
    );
  }
  const found = await TopicAdmin.use(kafka, (topics) => findOrCreate(topics, wanted, checkpoints));
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
      await compare(kafka, topic, lanes);
      await checkpoints.recordDatabase(name);
    } catch (error) {
      // A publisher may lack the permission to read the topic: then nobody can tell, and it publishes as it may.
      if (!isForbidden(error)) throw error;
    }
  }
  return found;
}

/**
 * Looks whether the newest events of the topic are in the log. They are not after a restore to an earlier state, or the
 * failover to a replica that had not got them, or when another log is published to the topic. Positions and versions of
 * sessions are then given out twice, and consumers would take the second for a repetition of the first, and drop it.
 * @throws TopicMismatch
 */
async function compare(
  kafka: KafkaSettings,
  topic: string,
  lanes: Pick<LaneReader, 'missing'>,
): Promise<void> {
  const records = await newestRecords(kafka, topic);
  const missing = await lanes.missing(records.map(({ headers }) => publishedPlace(headers)));
  const strange = records.filter(({ headers }) => missing.has(headers['ce_id'] ?? ''));
  if (strange.length === 0) return;
  const times = strange.map(({ headers }) => headers['ce_time'] ?? '').sort();
  throw new TopicMismatch(
    `the topic ${topic} has events that this log has not: ${strange.length} of the newest, the last of ` +
      `${times.at(-1) ?? 'an unknown time'}. Was the database restored to an earlier state? Consumers have seen ` +
      'those events. Name a new topic in `kafka.topic`, run `colloquy relay anew`, and let the consumers begin with ' +
      'it; docs/operations.md has more',
  );
}

async function findOrCreate(
  topics: TopicAdmin,
  wanted: NewTopic,
  checkpoints: RelayCheckpoints,
): Promise<FoundTopic> {
  const existing = await topics.find(wanted.topic);
  if (existing) return existing;
  // The topic is new, or it was deleted with all its records: either way it begins with the first event.
  await checkpoints.beginAnew();
  await topics.create(wanted);
  const created = await topics.find(wanted.topic);
  if (!created) throw new Error(`the topic ${wanted.topic} was created and cannot be found yet`);
  return created;
}

/** A record that is none of ours has a place where nothing is. */
function publishedPlace(headers: Readonly<Record<string, string>>): EventPlace {
  const number = (name: string): number =>
    /^\d{1,15}$/.test(headers[name] ?? '') ? Number(headers[name]) : 0;
  const lane = number('ce_lane');
  return {
    lane: lane < 32_768 ? lane : 0,
    position: number('ce_position'),
    id: headers['ce_id'] ?? '',
  };
}
