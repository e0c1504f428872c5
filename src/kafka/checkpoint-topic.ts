import { type KafkaSettings } from './kafka-connection.js';
import { type OutgoingMessage, Publisher } from './publisher.js';
import { TopicAdmin } from './topic-admin.js';
import { readTopic } from './topic-tail.js';

/** One partition: a checkpoint comes once a minute and lane. Nothing is ever deleted, for it is evidence. */
const NEW_TOPIC = { partitions: 1, retentionMs: -1, maxMessageBytes: 1_048_576 };
const RETRY_MS = 5_000;

/** The name of the topic for checkpoints, beside that for events. */
export const checkpointTopicOf = (topic: string): string => `${topic}.checkpoints`;

export interface CheckpointTopicOptions {
  readonly kafka: KafkaSettings;
  readonly topic: string;
  readonly replication?: number | undefined;
  readonly onError: (error: unknown) => void;
}

/**
 * Publishes signed checkpoints, so that they lie where the owner of the database cannot change them. At least the last one
 * of each tree arrives: what could not be sent waits, and a newer one takes the place of an older one.
 */
export class CheckpointTopic {
  /** Origin of the tree → its note. */
  private readonly waiting = new Map<string, string>();
  private sending: Promise<void> | undefined;
  private retry: NodeJS.Timeout | undefined;
  private stopped = false;

  constructor(private readonly options: CheckpointTopicOptions) {}

  publish(notes: readonly string[]): void {
    for (const note of notes) this.waiting.set(originOf(note), note);
    this.send();
  }

  async stop(): Promise<void> {
    this.stopped = true;
    clearTimeout(this.retry);
    await this.sending;
  }

  private send(): void {
    if (this.stopped || this.retry || this.waiting.size === 0) return;
    this.sending ??= this.sendNow()
      .catch((error: unknown) => {
        this.options.onError(error);
        this.retry = setTimeout(() => {
          this.retry = undefined;
          this.send();
        }, RETRY_MS).unref();
      })
      .finally(() => {
        this.sending = undefined;
        this.send();
      });
  }

  private async sendNow(): Promise<void> {
    const { kafka, topic, replication } = this.options;
    await TopicAdmin.use(kafka, async (topics) => {
      if (!(await topics.find(topic))) await topics.create({ ...NEW_TOPIC, topic, replication });
    });
    const publisher = await Publisher.connect(kafka, 'none');
    try {
      while (this.waiting.size > 0) {
        const notes = [...this.waiting];
        await publisher.send(topic, notes.map(messageOf));
        for (const [origin, note] of notes)
          if (this.waiting.get(origin) === note) this.waiting.delete(origin);
      }
    } finally {
      await publisher.close();
    }
  }
}

const originOf = (note: string): string => note.slice(0, note.indexOf('\n'));

const messageOf = ([key, value]: [string, string]): OutgoingMessage => ({
  key,
  value,
  partition: 0,
  headers: { 'content-type': 'text/plain; charset=utf-8' },
});

/** All checkpoints that a topic has. */
export async function publishedCheckpoints(kafka: KafkaSettings, topic: string): Promise<string[]> {
  const notes: string[] = [];
  await readTopic(kafka, topic, Infinity, ({ value }) => {
    if (value !== null) notes.push(value.toString());
  });
  return notes;
}
