import { Module } from '@nestjs/common';
import { SessionsModule } from '../sessions/sessions.module.js';
import { AuditController } from './audit.controller.js';
import { Feed } from './feed.js';
import { Forks } from './fork.js';
import { Past } from './past.js';

/** The events and past states of sessions, and forks. */
@Module({
  imports: [SessionsModule],
  providers: [Feed, Past, Forks],
  controllers: [AuditController],
  exports: [Forks],
})
export class AuditModule {}
