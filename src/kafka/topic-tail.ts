import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { type IncomingMessage, toIncomingMessage } from './group-member.js';
import { disconnected, kafkaClient, type KafkaSettings } from './kafka-connection.js';

const LIMIT_MS = 30_000;

/**
 * The newest record of each partition that has one. It takes seconds, because the brokers wait for further members of
 * the group that reads it.
 */
export async function lastRecords(settings: KafkaSettings, topic: string): Promise<IncomingMessage[]> {
  const kafka = kafkaClient(settings);
  const admin = kafka.admin();
  const groupId = `${settings.clientId ?? 'colloquy'}-tail-${randomUUID()}`;
  const consumer = kafka.consumer({ groupId, allowAutoTopicCreation: false, maxWaitTimeInMs: 100 });
  try {
    await admin.connect();
    const offsets = await admin.fetchTopicOffsets(topic);
    const wanted = new Map(
      offsets
        .filter(({ low, high }) => BigInt(high) > BigInt(low))
        .map(({ partition, high }) => [partition, String(BigInt(high) - 1n)]),
    );
    const found = new Map<number, IncomingMessage>();
    if (wanted.size === 0) return [];
    await consumer.connect();
    await consumer.subscribe({ topics: [topic], fromBeginning: false });
    const crash = new Promise<never>((_, reject) => {
      consumer.on(consumer.events.CRASH, ({ payload }) => {
        reject(payload.error);
      });
    });
    // It may be rejected after the records were found.
    crash.catch(() => undefined);
    let enough = (): void => undefined;
    const complete = new Promise<void>((resolve) => (enough = resolve));
    await consumer.run({
      autoCommit: false,
      eachMessage: ({ partition, message }) => {
        // Records that come while this reads belong to nodes that publish already.
        if (!found.has(partition)) found.set(partition, toIncomingMessage(message));
        if (found.size === wanted.size) enough();
        return Promise.resolve();
      },
    });
    for (const [partition, offset] of wanted) consumer.seek({ topic, partition, offset });
    const late = new AbortController();
    const limit = sleep(LIMIT_MS, undefined, { signal: late.signal, ref: false }).then(() => {
      throw new Error(`the newest records of ${topic} did not come within ${LIMIT_MS / 1_000} s`);
    });
    limit.catch(() => undefined);
    await Promise.race([complete, crash, limit]);
    late.abort();
    return [...found.values()];
  } finally {
    await disconnected(consumer.disconnect());
    // The group would otherwise stay for a week.
    await admin.deleteGroups([groupId]).catch(() => undefined);
    await disconnected(admin.disconnect());
  }
}
