import type { Producer } from 'kafkajs';
import { disconnected, kafkaClient, type KafkaSettings, REQUEST_TIMEOUT_MS } from './kafka-connection.js';
import { errorTypes, kafkajs } from './kafkajs.js';

export interface OutgoingMessage {
  readonly key: string;
  readonly value: string | Buffer;
  readonly partition: number;
  readonly headers: Readonly<Record<string, string>>;
}

/**
 * Characters from which a batch is compressed. Compressing smaller batches takes more time than sending the saved
 * bytes.
 */
const COMPRESS_FROM_LENGTH = 16_384;

/** Whether a send failed because the topic accepts only smaller batches. */
export const isTooLarge = (error: unknown): boolean =>
  errorTypes(error).some((type) => ['MESSAGE_TOO_LARGE', 'RECORD_LIST_TOO_LARGE'].includes(type));

/**
 * An idempotent producer, one per node. It sends one batch at a time, and none after a failure: kafkajs then reuses the
 * sequence numbers of the failed batch, which the broker may have stored all the same. The broker would take the next
 * batch for a repetition and acknowledge it without storing it.
 */
export class Publisher {
  private inFlight = false;
  private failed = false;

  private constructor(
    private readonly producer: Producer,
    private readonly compression: 'gzip' | 'none',
  ) {}

  static async connect(settings: KafkaSettings, compression: 'gzip' | 'none'): Promise<Publisher> {
    const { Partitioners } = kafkajs();
    const producer = kafkaClient(settings).producer({
      idempotent: true,
      maxInFlightRequests: 1,
      allowAutoTopicCreation: false,
      // Every message names its partition; without a partitioner kafkajs would print a warning.
      createPartitioner: Partitioners.DefaultPartitioner,
      // By default an idempotent producer retries for ever, so it would publish long after the lease of its node has
      // expired. These few retries repeat one batch under its own sequence numbers; the relay checks its leases before
      // it tries again.
      retry: { retries: 2, initialRetryTime: 100, maxRetryTime: 500 },
    });
    try {
      await producer.connect();
    } catch (error) {
      // A producer whose InitProducerId failed would go on without being idempotent.
      await disconnected(producer.disconnect());
      throw error;
    }
    return new Publisher(producer, compression);
  }

  /** Resolves once all in-sync replicas have all messages; on failure any part of them may have been stored. */
  async send(topic: string, messages: readonly OutgoingMessage[]): Promise<void> {
    if (this.inFlight || this.failed)
      throw new Error('a publisher sends one batch at a time, and none after a failure');
    this.inFlight = true;
    const { CompressionTypes } = kafkajs();
    const compressed = this.compression === 'gzip' && lengthOf(messages) > COMPRESS_FROM_LENGTH;
    try {
      await this.producer.send({
        topic,
        messages: messages as OutgoingMessage[],
        acks: -1,
        timeout: REQUEST_TIMEOUT_MS,
        compression: compressed ? CompressionTypes.GZIP : CompressionTypes.None,
      });
    } catch (error) {
      this.failed = true;
      throw error;
    } finally {
      this.inFlight = false;
    }
  }

  close(): Promise<void> {
    return disconnected(this.producer.disconnect());
  }
}

/** Characters of all values. They approximate the bytes, which would take time to count. */
export function lengthOf(messages: readonly OutgoingMessage[]): number {
  let length = 0;
  for (const { value } of messages) length += value.length;
  return length;
}
