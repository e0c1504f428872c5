import { Module } from '@nestjs/common';
import { SessionsModule } from '../sessions/sessions.module.js';
import { AuditController } from './audit.controller.js';
import { Feed } from './feed.js';
import { Forks } from './fork.js';
import { Past } from './past.js';

/** What happened, what was, and how to go on from there another way. */
@Module({
  imports: [SessionsModule],
  providers: [Feed, Past, Forks],
  controllers: [AuditController],
})
export class AuditModule {}
