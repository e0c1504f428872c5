import {
  Inject,
  Injectable,
  Logger,
  Module,
  type OnApplicationBootstrap,
  type OnApplicationShutdown,
} from '@nestjs/common';
import { type Config, SETTINGS } from '../config.js';
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
