import { Controller, Get, Inject, Logger, Param } from '@nestjs/common';
import { LRUCache } from 'lru-cache';
import { z } from 'zod';
import { Requires } from '../access/requirement.js';
import { type Config, SETTINGS } from '../config.js';
import { type ListedModel, type Provider, PROVIDER } from '../generation/provider.js';
import { Answers } from '../http/openapi.js';
import { ApiError } from '../http/problem.js';
import { OPENAI_PREFIX } from './wire.js';

const Model = z
  .object({ id: z.string(), object: z.literal('model'), created: z.int(), owned_by: z.string() })
  .meta({ id: 'OpenAiModel' });
const ModelList = z.object({ object: z.literal('list'), data: z.array(Model) });

/** The provider's models change seldom, and some providers limit how often they are asked. */
const KEPT_MS = 300_000;

@Controller(`${OPENAI_PREFIX}/models`)
export class ModelsController {
  private readonly logger = new Logger('openai');
  private readonly lists = new LRUCache<'all', readonly ListedModel[]>({
    max: 1,
    ttl: KEPT_MS,
    fetchMethod: async () => (this.provider ? this.provider.models() : [this.own]),
  });

  constructor(
    @Inject(PROVIDER) private readonly provider: Provider | null,
    @Inject(SETTINGS) private readonly settings: Config,
  ) {}

  @Requires('generate:own')
  @Get()
  @Answers(200, ModelList, { summary: 'List the models of the provider, else the one of the settings' })
  async list() {
    return { object: 'list', data: (await this.models()).map(viewOf) };
  }

  @Requires('generate:own')
  @Get(':id')
  @Answers(200, Model, { summary: 'Get a model', problems: ['not-found'] })
  async get(@Param('id') id: string) {
    const found = (await this.models()).find((model) => model.id === id);
    if (found) return viewOf(found);
    throw new ApiError('not-found', `The model '${id}' does not exist.`);
  }

  private get own(): ListedModel {
    return { id: this.settings.llm.model, created: 0, ownedBy: 'colloquy' };
  }

  private async models(): Promise<readonly ListedModel[]> {
    try {
      return (await this.lists.fetch('all')) ?? [this.own];
    } catch (error) {
      // Many servers that speak the API have no list, and what there is can be used all the same.
      this.logger.warn(`the models of the provider cannot be listed: ${(error as Error).message}`);
      return [this.own];
    }
  }
}

const viewOf = ({ id, created, ownedBy }: ListedModel) => ({
  id,
  object: 'model',
  created,
  owned_by: ownedBy,
});
