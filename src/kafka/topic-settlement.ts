import { type KafkaSettings } from './kafka-connection.js';
import { type RelayCheckpoints } from './relay-checkpoints.js';
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
): Promise<FoundTopic> {
  const { topic } = wanted;
  const recorded = await checkpoints.recordedTopic();
  if (recorded && recorded.topic !== topic) {
    throw new TopicMismatch(
      `events are published to the topic ${recorded.topic} so far, and the settings name ${topic}. Name the old one ` +
        'again, or have everything published anew: delete from relay_topic; update relay_checkpoint set position = 0;',
    );
  }
  const found = await TopicAdmin.use(kafka, (topics) => findOrCreate(topics, wanted, checkpoints));
  const { partitions: expected } = await checkpoints.recordTopic({ topic, partitions: found.partitions });
  if (found.partitions !== expected) {
    throw new TopicMismatch(
      `the topic ${topic} has ${found.partitions} partitions, and events were published to ${expected} so far: each ` +
        'session would go on in another one, past consumers that have not seen its beginning. Give the relay a new ' +
        'topic, which is published from the first event on',
    );
  }
  return found;
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
