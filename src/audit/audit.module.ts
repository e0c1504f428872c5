import { Module } from '@nestjs/common';
import { SessionsModule } from '../sessions/sessions.module.js';
import { AuditController } from './audit.controller.js';
import { DataKeysController } from './data-keys.controller.js';
import { Feed } from './feed.js';
import { Forks } from './fork.js';
import { Past } from './past.js';

/** The events and past states of sessions, the keys of those that are published sealed, and forks. */
@Module({
  imports: [SessionsModule],
  providers: [Feed, Past, Forks],
  controllers: [AuditController, DataKeysController],
  exports: [Forks],
})
export class AuditModule {}
