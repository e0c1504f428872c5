import { Module } from '@nestjs/common';
import { KafkaModule } from '../kafka/kafka.module.js';
import { ReadModelsModule } from '../read-models/read-models.module.js';
import { SweeperModule } from '../sweeper/sweeper.module.js';
import { ContractController } from './contract.controller.js';
import { HealthController } from './health.controller.js';
import { MetricsController } from './metrics.controller.js';
import { ProjectionsController } from './projections.controller.js';
import { RelayController } from './relay.controller.js';
import { SweeperController } from './sweeper.controller.js';

/** What operators look at and steer. */
@Module({
  imports: [ReadModelsModule, KafkaModule, SweeperModule],
  controllers: [
    ContractController,
    HealthController,
    MetricsController,
    RelayController,
    SweeperController,
    ProjectionsController,
  ],
})
export class OpsModule {}
