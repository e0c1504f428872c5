import { Module, type OnModuleInit } from '@nestjs/common';
import { HttpAdapterHost } from '@nestjs/core';
import { type FastifyInstance } from 'fastify';
import { AuditModule } from '../audit/audit.module.js';
import { GenerationModule } from '../generation/generation.module.js';
import { addSurface } from '../http/surfaces.js';
import { SessionsModule } from '../sessions/sessions.module.js';
import { ConversationItems } from './conversation-items.js';
import { ConversationsController } from './conversations.controller.js';
import { renderOpenAiError } from './errors.js';
import { Responses } from './responses.js';
import { ResponsesController } from './responses.controller.js';
import { OPENAI_PREFIX } from './wire.js';

/** OpenAI's API on the same log: its requests become the commands and queries that there are. */
@Module({
  imports: [SessionsModule, GenerationModule, AuditModule],
  providers: [ConversationItems, Responses],
  controllers: [ConversationsController, ResponsesController],
})
export class OpenAiModule implements OnModuleInit {
  constructor(private readonly host: HttpAdapterHost) {}

  onModuleInit(): void {
    addSurface(this.host, { prefix: `/${OPENAI_PREFIX}`, renderError: renderOpenAiError });
    this.host.httpAdapter.getInstance<FastifyInstance>().addHook('onRequest', (request, reply, done) => {
      // Clients show it with their errors.
      if (request.url.startsWith(`/${OPENAI_PREFIX}`)) reply.header('x-request-id', request.id);
      done();
    });
  }
}
