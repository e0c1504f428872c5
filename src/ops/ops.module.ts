import { Module } from '@nestjs/common';
import { AccessModule } from '../access/access.module.js';
import { KafkaModule } from '../kafka/kafka.module.js';
import { ProofModule } from '../proof/proof.module.js';
import { ReadModelsModule } from '../read-models/read-models.module.js';
import { SweeperModule } from '../sweeper/sweeper.module.js';
import { CellsController } from './cells.controller.js';
import { ContractController } from './contract.controller.js';
import { HealthController } from './health.controller.js';
import { Health } from './health.js';
import { LogController } from './log.controller.js';
import { FailureLog } from './failure-log.js';
import { Metrics } from './metrics.js';
import { MetricsController } from './metrics.controller.js';
import { NodesController } from './nodes.controller.js';
import { ProjectionsController } from './projections.controller.js';
import { RelayController } from './relay.controller.js';
import { SweeperController } from './sweeper.controller.js';

/** Health, metrics and administration, for operators. */
@Module({
  imports: [AccessModule, ReadModelsModule, KafkaModule, ProofModule, SweeperModule],
  providers: [Health, Metrics, FailureLog],
  controllers: [
    ContractController,
    HealthController,
    CellsController,
    LogController,
    MetricsController,
    NodesController,
    RelayController,
    SweeperController,
    ProjectionsController,
  ],
})
export class OpsModule {}
