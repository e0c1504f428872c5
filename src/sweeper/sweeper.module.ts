import { Injectable, Logger, Module, type OnApplicationShutdown, type OnModuleInit } from '@nestjs/common';
import { DatabaseUnavailable } from '../database/connection.js';
import { EventLog } from '../event-store/log.js';
import { Leases } from '../event-store/leases.js';
import { ReadModels } from '../projection-engine/strong-reads.js';
import { SessionCommands } from '../sessions/session-commands.js';
import { SessionsModule } from '../sessions/sessions.module.js';
import { TenantPolicies } from '../sessions/tenant-policies.js';
import { Sweeper } from './sweeper.js';

/** The sweeper of this node, which runs from the start of the application to its end. */
@Injectable()
class NodeSweeper extends Sweeper implements OnModuleInit, OnApplicationShutdown {
  constructor(
    store: EventLog,
    models: ReadModels,
    policies: TenantPolicies,
    commands: SessionCommands,
    leases: Leases,
  ) {
    const logger = new Logger('sweeper');
    super({
      ...{ store, models, policies, commands, leases },
      warn: (message) => {
        logger.warn(message);
      },
      onError: (error) => {
        // The next sweep tries again. An unreachable database is not logged here, because every part of the service
        // meets it.
        if (!(error instanceof DatabaseUnavailable)) logger.error('a sweep failed', error);
      },
    });
  }

  onModuleInit(): Promise<void> {
    return this.start();
  }

  onApplicationShutdown(): Promise<void> {
    return this.stop();
  }
}

/** Expires, deletes and erases sessions that are due. */
@Module({
  imports: [SessionsModule],
  providers: [{ provide: Sweeper, useClass: NodeSweeper }],
  exports: [Sweeper],
})
export class SweeperModule {}
