import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { type IncomingMessage, toIncomingMessage } from './group-member.js';
import { disconnected, kafkaClient, type KafkaSettings } from './kafka-connection.js';

const LIMIT_MS = 30_000;
/** Records of each partition. Several lanes share one, and the newest of each should be among them. */
const NEWEST = 100;

/**
 * The newest records of each partition. It takes seconds, because the brokers wait for further members of the group that
 * reads them.
 */
export async function newestRecords(settings: KafkaSettings, topic: string): Promise<IncomingMessage[]> {
  const kafka = kafkaClient(settings);
  const admin = kafka.admin();
  const groupId = `${settings.clientId ?? 'colloquy'}-tail-${randomUUID()}`;
  const consumer = kafka.consumer({ groupId, allowAutoTopicCreation: false, maxWaitTimeInMs: 100 });
  try {
    await admin.connect();
    const offsets = await admin.fetchTopicOffsets(topic);
    /** Partition → the offset behind what is wanted of it. Records behind it belong to nodes that publish already. */
    const ends = new Map(
      offsets
        .filter(({ low, high }) => Number(high) > Number(low))
        .map(({ partition, high }) => [partition, Number(high)]),
    );
    if (ends.size === 0) return [];
    const found: IncomingMessage[] = [];
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
        const left = (ends.get(partition) ?? 0) - Number(message.offset);
        if (left >= 1) found.push(toIncomingMessage(message));
        if (left <= 1) ends.delete(partition);
        if (ends.size === 0) enough();
        return Promise.resolve();
      },
    });
    for (const { partition, low, high } of offsets) {
      const offset = Math.max(Number(low), Number(high) - NEWEST);
      if (ends.has(partition)) consumer.seek({ topic, partition, offset: String(offset) });
    }
    const late = new AbortController();
    const limit = sleep(LIMIT_MS, undefined, { signal: late.signal, ref: false }).then(() => {
      throw new Error(`the newest records of ${topic} did not come within ${LIMIT_MS / 1_000} s`);
    });
    limit.catch(() => undefined);
    await Promise.race([complete, crash, limit]);
    late.abort();
    return found;
  } finally {
    await disconnected(consumer.disconnect());
    // The group would otherwise stay for a week.
    await admin.deleteGroups([groupId]).catch(() => undefined);
    await disconnected(admin.disconnect());
  }
}
