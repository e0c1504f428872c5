import { type DynamicModule, Module } from '@nestjs/common';
import { CqrsModule } from '@nestjs/cqrs';
import { AccessModule } from './access/access.module.js';
import { AiSdkModule } from './ai-sdk/ai-sdk.module.js';
import { AuditModule } from './audit/audit.module.js';
import { type Cells } from './cells/cells.js';
import { type Config } from './config.js';
import { ConsoleModule } from './console/console.module.js';
import { GenerationModule } from './generation/generation.module.js';
import { KafkaModule } from './kafka/kafka.module.js';
import { OpenAiModule } from './openai/openai.module.js';
import { OpsModule } from './ops/ops.module.js';
import { ProofModule } from './proof/proof.module.js';
import { SessionsModule } from './sessions/sessions.module.js';
import { StorageModule } from './storage.module.js';
import { SweeperModule } from './sweeper/sweeper.module.js';

/**
 * The whole service. Each feature is a module that begins and ends by itself; Nest does so along the imports, what
 * others build on first at the start and last at the end.
 */
@Module({})
export class AppModule {
  /**
   * @param databaseUrl of a database that is migrated
   * @param cells for the first of several cells, which tells operators of all of them
   */
  static create(config: Config, databaseUrl: string, cells?: Cells): DynamicModule {
    return {
      module: AppModule,
      imports: [
        StorageModule.for(config, databaseUrl, cells),
        CqrsModule.forRoot(),
        AccessModule,
        ProofModule,
        SessionsModule,
        AuditModule,
        GenerationModule,
        OpenAiModule,
        AiSdkModule,
        SweeperModule,
        KafkaModule,
        OpsModule,
        ConsoleModule,
      ],
    };
  }
}
