import type { Admin } from 'kafkajs';
import { disconnected, kafkaClient, type KafkaSettings, REQUEST_TIMEOUT_MS } from './kafka-connection.js';
import { errorTypes, isForbidden, kafkajs } from './kafkajs.js';

export interface NewTopic {
  readonly topic: string;
  readonly partitions: number;
  /** Number of replicas. Default: the setting of the brokers. */
  readonly replication?: number | undefined;
  readonly retentionMs: number;
  readonly maxMessageBytes: number;
}

export interface FoundTopic {
  readonly partitions: number;
  /** Bytes of the largest batch that the topic accepts. */
  readonly maxMessageBytes: number;
}

/** Bytes of the largest batch that brokers accept by default. */
const DEFAULT_MAX_MESSAGE_BYTES = 1_048_588;

/**
 * Finds and creates topics. Nothing else creates topics: one that the brokers create at the first send would have the
 * wrong settings.
 */
export class TopicAdmin {
  private constructor(private readonly admin: Admin) {}

  /** Connects, runs `work`, and disconnects. */
  static async use<T>(settings: KafkaSettings, work: (topics: TopicAdmin) => Promise<T>): Promise<T> {
    const admin = kafkaClient(settings).admin();
    try {
      await admin.connect();
      return await work(new TopicAdmin(admin));
    } finally {
      await disconnected(admin.disconnect());
    }
  }

  /** @returns undefined when the topic does not exist. */
  async find(topic: string): Promise<FoundTopic | undefined> {
    try {
      const { topics } = await this.admin.fetchTopicMetadata({ topics: [topic] });
      const [found] = topics;
      if (!found || found.partitions.length === 0) return undefined;
      return { partitions: found.partitions.length, maxMessageBytes: await this.maxMessageBytes(topic) };
    } catch (error) {
      if (errorTypes(error).includes('UNKNOWN_TOPIC_OR_PARTITION')) return undefined;
      throw error;
    }
  }

  /** Does nothing when another node has created the topic meanwhile. */
  async create({ topic, partitions, replication, retentionMs, maxMessageBytes }: NewTopic): Promise<void> {
    await this.admin.createTopics({
      waitForLeaders: true,
      timeout: REQUEST_TIMEOUT_MS,
      topics: [
        {
          topic,
          numPartitions: partitions,
          replicationFactor: replication ?? -1,
          configEntries: [
            // The topic is never compacted: a late write of a node that lost its lease could otherwise replace a newer
            // record for good.
            { name: 'cleanup.policy', value: 'delete' },
            { name: 'retention.ms', value: String(retentionMs) },
            { name: 'max.message.bytes', value: String(maxMessageBytes) },
          ],
        },
      ],
    });
  }

  private async maxMessageBytes(topic: string): Promise<number> {
    try {
      const { resources } = await this.admin.describeConfigs({
        includeSynonyms: false,
        resources: [
          { type: kafkajs().ConfigResourceTypes.TOPIC, name: topic, configNames: ['max.message.bytes'] },
        ],
      });
      const value = Number(resources[0]?.configEntries[0]?.configValue);
      return value > 0 ? value : DEFAULT_MAX_MESSAGE_BYTES;
    } catch (error) {
      // Reading settings needs a permission of its own, which a publisher may lack. If the default is too high, the
      // broker refuses a batch, and the relay then lowers its limit by itself.
      if (isForbidden(error)) return DEFAULT_MAX_MESSAGE_BYTES;
      throw error;
    }
  }
}
