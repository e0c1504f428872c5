import {
  Inject,
  Injectable,
  Logger,
  Module,
  type OnApplicationBootstrap,
  type OnApplicationShutdown,
} from '@nestjs/common';
import { type Config, ConfigError, SETTINGS } from '../config.js';
import { RelaxedPool } from '../database/relaxed-pool.js';
import { EventLog } from '../event-store/log.js';
import { Leases } from '../event-store/leases.js';
import { Relay } from './relay.js';

/** The relay of this node: it publishes from the start of the application to its end, if brokers are named. */
@Injectable()
class NodeRelay extends Relay implements OnApplicationBootstrap, OnApplicationShutdown {
  private readonly hasBrokers: boolean;

  constructor(
    store: EventLog,
    { pool }: RelaxedPool,
    leases: Leases,
    @Inject(SETTINGS) { kafka, storage }: Config,
  ) {
    // What is said would go to the topic in plain, and stay there, while the settings promise the opposite.
    if (kafka.payload === 'sealed' && !store.seals) {
      throw new ConfigError([
        'kafka.payload is sealed, and no master key seals: give one as COLLOQUY_MASTER_KEY (storage.masterKey), ' +
          'with plain not in front of it, or publish plain',
      ]);
    }
    const logger = new Logger('relay');
    super(store, pool, leases, {
      ...kafka,
      kafka,
      cell: storage.cell,
      onTrouble: ({ message }, forGood) => {
        if (forGood) logger.error(`nothing is published to Kafka any more: ${message}`);
        else logger.warn(`nothing is published to Kafka for now, events wait in the log: ${message}`);
      },
      onRecovered: () => {
        logger.warn('events are published to Kafka again');
      },
    });
    this.hasBrokers = kafka.brokers.length > 0;
  }

  /** Without brokers, events wait in the log and the Kafka client is not loaded. */
  onApplicationBootstrap(): void {
    if (this.hasBrokers) this.start();
  }

  onApplicationShutdown(): Promise<void> {
    return this.stop();
  }
}

/** Publishes the log to Kafka. */
@Module({
  providers: [{ provide: Relay, useClass: NodeRelay }],
  exports: [Relay],
})
export class KafkaModule {}
