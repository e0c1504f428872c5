import {
  Inject,
  Injectable,
  Logger,
  Module,
  type OnApplicationShutdown,
  type OnModuleInit,
} from '@nestjs/common';
import { type Config, SETTINGS } from '../config.js';
import { DatabaseUnavailable } from '../database/connection.js';
import { RelaxedPool } from '../database/relaxed-pool.js';
import { EventLog } from '../event-store/log.js';
import { Leases } from '../event-store/leases.js';
import { CheckpointTopic, checkpointTopicOf } from '../kafka/checkpoint-topic.js';
import { CheckpointsController } from './checkpoints.controller.js';
import { MerkleStore } from './merkle-store.js';
import { Notary } from './notary.js';
import { NotaryKeys } from './notary-keys.js';
import { Proofs } from './proofs.js';
import { TreeKeeper } from './tree-keeper.js';

/** The notary of this node, from the start of the application to its end. */
@Injectable()
class NodeNotary extends Notary implements OnModuleInit, OnApplicationShutdown {
  private readonly published: CheckpointTopic | undefined;
  private readonly logger = new Logger('notary');

  constructor(
    log: EventLog,
    store: MerkleStore,
    keys: NotaryKeys,
    leases: Leases,
    @Inject(SETTINGS) { kafka }: Config,
  ) {
    const published =
      kafka.brokers.length > 0
        ? new CheckpointTopic({
            kafka,
            topic: checkpointTopicOf(kafka.topic),
            replication: kafka.replication,
            onError: (error) => {
              this.logger.warn(`checkpoints are not published to Kafka for now: ${(error as Error).message}`);
            },
          })
        : undefined;
    super({
      ...{ log, store, leases },
      keeper: new TreeKeeper(log, store, keys),
      onSigned: (checkpoints) => published?.publish(checkpoints.map(({ note }) => note)),
      onError: (error) => {
        // It tries again. An unreachable database is not logged here, because every part of the service meets it.
        if (!(error instanceof DatabaseUnavailable)) this.logger.error('the notary cannot go on', error);
      },
    });
    this.published = published;
  }

  onModuleInit(): Promise<void> {
    return this.start();
  }

  async onApplicationShutdown(): Promise<void> {
    await this.stop();
    await this.published?.stop();
  }
}

/** Proves what the log holds: Merkle trees over its lanes, and their signed checkpoints. */
@Module({
  providers: [
    {
      // All of it follows from the log but what is signed, which waits for nothing that could be lost either.
      provide: MerkleStore,
      useFactory: ({ pool }: RelaxedPool) => new MerkleStore(pool),
      inject: [RelaxedPool],
    },
    {
      // A key that has signed must not be lost in a crash.
      provide: NotaryKeys,
      useFactory: (log: EventLog) => new NotaryKeys(log.pool, log),
      inject: [EventLog],
    },
    { provide: Proofs, useFactory: (store: MerkleStore) => new Proofs(store), inject: [MerkleStore] },
    { provide: Notary, useClass: NodeNotary },
  ],
  controllers: [CheckpointsController],
  exports: [Notary, NotaryKeys],
})
export class ProofModule {}
