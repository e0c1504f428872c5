import { Inject, Injectable, Module, type OnApplicationShutdown, type OnModuleInit } from '@nestjs/common';
import { CqrsModule } from '@nestjs/cqrs';
import { type Config, SETTINGS } from '../config.js';
import { EventLog } from '../event-store/log.js';
import { ProofModule } from '../proof/proof.module.js';
import { ReadModelsModule } from '../read-models/read-models.module.js';
import { ApprovalsController } from './approvals.controller.js';
import { commandHandlers } from './command-handlers.js';
import { ErasureController } from './erasure.controller.js';
import { Erasures } from './erasures.js';
import { PartialReplies } from './partial-replies.js';
import { MessageSearch } from './message-search.js';
import { SearchController } from './search.controller.js';
import { SessionCommands } from './session-commands.js';
import { SessionQueries } from './session-queries.js';
import { SessionsController } from './sessions.controller.js';
import { TenantPolicies } from './tenant-policies.js';
import { TenantsController } from './tenants.controller.js';
import { UsageController } from './usage.controller.js';

@Injectable()
class NodePolicies extends TenantPolicies implements OnModuleInit, OnApplicationShutdown {
  constructor(store: EventLog, @Inject(SETTINGS) { sessions, tenants }: Config) {
    super(store, sessions, tenants);
  }

  onModuleInit(): Promise<void> {
    return this.start();
  }

  onApplicationShutdown(): void {
    this.stop();
  }
}

/** Commands and queries on sessions, and the policies of their tenants. */
@Module({
  imports: [CqrsModule, ReadModelsModule, ProofModule],
  providers: [
    { provide: TenantPolicies, useClass: NodePolicies },
    Erasures,
    MessageSearch,
    PartialReplies,
    SessionCommands,
    SessionQueries,
    ...commandHandlers,
  ],
  controllers: [
    SessionsController,
    ErasureController,
    SearchController,
    ApprovalsController,
    TenantsController,
    UsageController,
  ],
  exports: [CqrsModule, ReadModelsModule, TenantPolicies, PartialReplies, SessionCommands, SessionQueries],
})
export class SessionsModule {}
