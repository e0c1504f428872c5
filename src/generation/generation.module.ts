import { Inject, Injectable, Module, type OnApplicationShutdown, type OnModuleDestroy } from '@nestjs/common';
import { CommandBus } from '@nestjs/cqrs';
import { AccessModule } from '../access/access.module.js';
import { Limits } from '../access/limits.js';
import { type Config, SETTINGS } from '../config.js';
import { EventLog } from '../event-store/log.js';
import { Leases } from '../event-store/leases.js';
import { ReadModels } from '../projection-engine/strong-reads.js';
import { PartialReplies } from '../sessions/partial-replies.js';
import { SessionCommands } from '../sessions/session-commands.js';
import { SessionsModule } from '../sessions/sessions.module.js';
import { type ChatModel } from './chat-model.js';
import { echoModel } from './echo.chat-model.js';
import { GenerationController } from './generation.controller.js';
import { Generations } from './generations.js';
import { observed } from './observed.chat-model.js';
import { PROVIDER } from './provider.js';
import { OpenAiModel } from './openai.chat-model.js';

/**
 * The generations of this node. At shutdown running ones may end by themselves for a while; then their model calls are
 * ended, and what has arrived is recorded.
 */
@Injectable()
class NodeGenerations extends Generations implements OnModuleDestroy, OnApplicationShutdown {
  private readonly graceMs: number;
  private grace: NodeJS.Timeout | undefined;

  constructor(
    store: EventLog,
    bus: CommandBus,
    commands: SessionCommands,
    leases: Leases,
    partials: PartialReplies,
    models: ReadModels,
    limits: Limits,
    @Inject(PROVIDER) provider: OpenAiModel | null,
    @Inject(SETTINGS) { llm, server }: Config,
  ) {
    const model: ChatModel = provider ?? echoModel;
    super(store, bus, commands, leases, partials, models, observed(model, store.telemetry), limits, {
      defaultModel: llm.model,
      maxInputTokens: llm.maxInputTokens,
    });
    this.graceMs = server.shutdownGraceMs;
  }

  /** Runs before the server waits for running requests. */
  onModuleDestroy(): void {
    this.grace = setTimeout(() => {
      this.abortAll();
    }, this.graceMs);
  }

  /** Runs after the last request was answered. */
  async onApplicationShutdown(): Promise<void> {
    await this.idle();
    clearTimeout(this.grace);
  }
}

/** Turns of conversations with a model. */
@Module({
  imports: [AccessModule, SessionsModule],
  providers: [
    {
      provide: PROVIDER,
      useFactory: ({ llm }: Config) => (llm.provider === 'echo' ? null : new OpenAiModel(llm)),
      inject: [SETTINGS],
    },
    { provide: Generations, useClass: NodeGenerations },
  ],
  controllers: [GenerationController],
  exports: [Generations, PROVIDER],
})
export class GenerationModule {}
