import { Module, type OnModuleInit } from '@nestjs/common';
import { HttpAdapterHost } from '@nestjs/core';
import { AccessModule } from '../access/access.module.js';
import { AuditModule } from '../audit/audit.module.js';
import { GenerationModule } from '../generation/generation.module.js';
import { addSurface } from '../http/surfaces.js';
import { SessionsModule } from '../sessions/sessions.module.js';
import { ChatCompletionsController } from './chat-completions.controller.js';
import { ModelsController } from './models.controller.js';
import { RecordedChat } from './recorded-chat.js';
import { ConversationItems } from './conversation-items.js';
import { ConversationsController } from './conversations.controller.js';
import { OpenAiErrorBody, renderOpenAiError } from './errors.js';
import { Responses } from './responses.js';
import { ResponsesController } from './responses.controller.js';
import { OPENAI_PREFIX } from './wire.js';

/** OpenAI's API on the same log: its requests become the commands and queries that there are. */
@Module({
  imports: [AccessModule, SessionsModule, GenerationModule, AuditModule],
  providers: [ConversationItems, Responses, RecordedChat],
  controllers: [ConversationsController, ResponsesController, ChatCompletionsController, ModelsController],
})
export class OpenAiModule implements OnModuleInit {
  constructor(private readonly host: HttpAdapterHost) {}

  onModuleInit(): void {
    addSurface(this.host, {
      prefix: `/${OPENAI_PREFIX}`,
      renderError: renderOpenAiError,
      // Clients show it with their errors.
      requestIdHeader: 'x-request-id',
      document: { tag: 'OpenAI', contentType: 'application/json', errors: OpenAiErrorBody },
    });
  }
}
