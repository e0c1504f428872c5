import { randomUUID } from 'node:crypto';
import { type IncomingMessage, toIncomingMessage } from './group-member.js';
import { disconnected, kafkaClient, type KafkaSettings } from './kafka-connection.js';

/** A read breaks off when no record came for so long. */
const PATIENCE_MS = 30_000;
/** Records of each partition. Several lanes share one, and the newest of each should be among them. */
const NEWEST = 100;

/**
 * The newest records of each partition. It takes seconds, because the brokers wait for further members of the group that
 * reads them.
 */
export async function newestRecords(settings: KafkaSettings, topic: string): Promise<IncomingMessage[]> {
  const found: IncomingMessage[] = [];
  await readTopic(settings, topic, NEWEST, (record) => found.push(record));
  return found;
}

/**
 * Reads what a topic has when the read begins; of each partition in its order.
 * @param newest records of each partition, the last ones; Infinity for all
 * @throws Error when the brokers stop answering; whatever kafkajs throws
 */
export async function readTopic(
  settings: KafkaSettings,
  topic: string,
  newest: number,
  take: (record: IncomingMessage) => void,
): Promise<void> {
  const kafka = kafkaClient(settings);
  const admin = kafka.admin();
  const groupId = `${settings.clientId ?? 'colloquy'}-tail-${randomUUID()}`;
  const consumer = kafka.consumer({ groupId, allowAutoTopicCreation: false, maxWaitTimeInMs: 100 });
  let patience: NodeJS.Timeout | undefined;
  try {
    await admin.connect();
    const offsets = await admin.fetchTopicOffsets(topic);
    /** Partition → the offset behind what is wanted of it. Records behind it belong to nodes that publish already. */
    const ends = new Map(
      offsets
        .filter(({ low, high }) => Number(high) > Number(low))
        .map(({ partition, high }) => [partition, Number(high)]),
    );
    if (ends.size === 0) return;
    await consumer.connect();
    await consumer.subscribe({ topics: [topic], fromBeginning: false });
    await new Promise<void>((resolve, reject) => {
      const wait = (): void => {
        clearTimeout(patience);
        patience = setTimeout(() => {
          reject(new Error(`no record of ${topic} came within ${PATIENCE_MS / 1_000} s`));
        }, PATIENCE_MS);
      };
      wait();
      consumer.on(consumer.events.CRASH, ({ payload }) => {
        reject(payload.error);
      });
      const run = consumer.run({
        autoCommit: false,
        eachMessage: ({ partition, message }) => {
          wait();
          const left = (ends.get(partition) ?? 0) - Number(message.offset);
          if (left >= 1) take(toIncomingMessage(message));
          if (left <= 1) ends.delete(partition);
          if (ends.size === 0) resolve();
          return Promise.resolve();
        },
      });
      run.catch(reject);
      for (const { partition, low, high } of offsets) {
        const offset = Math.max(Number(low), Number(high) - newest);
        if (ends.has(partition)) consumer.seek({ topic, partition, offset: String(offset) });
      }
    });
  } finally {
    clearTimeout(patience);
    await disconnected(consumer.disconnect());
    // The group would otherwise stay for a week.
    await admin.deleteGroups([groupId]).catch(() => undefined);
    await disconnected(admin.disconnect());
  }
}
