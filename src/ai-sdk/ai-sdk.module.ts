import { Module, type OnModuleInit } from '@nestjs/common';
import { HttpAdapterHost } from '@nestjs/core';
import { z } from 'zod';
import { GenerationModule } from '../generation/generation.module.js';
import { type ErrorAnswer, PROBLEMS, problemOf } from '../http/problem.js';
import { addSurface } from '../http/surfaces.js';
import { SessionsModule } from '../sessions/sessions.module.js';
import { AiSdkController } from './ai-sdk.controller.js';
import { Chats } from './chats.js';

/** The AI SDK's chats on the same log. */
@Module({
  imports: [SessionsModule, GenerationModule],
  providers: [Chats],
  controllers: [AiSdkController],
})
export class AiSdkModule implements OnModuleInit {
  constructor(private readonly host: HttpAdapterHost) {}

  onModuleInit(): void {
    addSurface(this.host, {
      prefix: '/ai-sdk',
      renderError,
      document: { tag: 'AI SDK', contentType: 'text/plain', errors: z.string() },
    });
  }
}

/** The client shows the body of an error as it is, so that is the sentence; its code is in a header. */
function renderError(error: unknown): ErrorAnswer {
  const { code, detail, headers } = problemOf(error);
  return {
    status: PROBLEMS[code].status,
    headers: { 'content-type': 'text/plain; charset=utf-8', 'x-error-code': code, ...headers },
    body: detail,
  };
}
