import { Controller, Get, Header, Inject, Param, Query } from '@nestjs/common';
import { type z } from 'zod';
import { Caller } from '../access/caller.js';
import { Requires } from '../access/requirement.js';
import { type Config, SETTINGS } from '../config.js';
import { EventLog } from '../event-store/log.js';
import { Answers } from '../http/openapi.js';
import { ApiError } from '../http/problem.js';
import { DataKey, dataKeyPath, DataKeyQuery } from './audit.schemas.js';

/** Seconds for which whoever asked may keep a key: after an erasure it opens nothing for anybody any longer than this. */
const MAX_AGE_SECONDS = 60;

/** The keys of sealed values of the topic, for consumers that may read the events in the service as well. */
@Controller('v1/keys')
export class DataKeysController {
  constructor(
    private readonly store: EventLog,
    @Inject(SETTINGS) private readonly settings: Config,
  ) {}

  @Requires('audit:read')
  @Get(':id')
  // Without a cache that several share, and none that keeps it for longer than a consumer may.
  @Header('cache-control', `private, max-age=${MAX_AGE_SECONDS}`)
  @Answers(200, DataKey, {
    summary: 'The key of a sealed value of the topic',
    description:
      'Of an event of the tenant, which `session` and `version` name. Whoever has it must forget it after `maxAgeSeconds`.',
    problems: ['key-not-found', 'key-destroyed', 'database-unavailable'],
  })
  async key(
    @Caller() { tenant }: Caller,
    @Param('id', { schema: dataKeyPath }) id: string,
    @Query({ schema: DataKeyQuery }) { session: streamId, version }: z.infer<typeof DataKeyQuery>,
  ): Promise<z.infer<typeof DataKey>> {
    // The log tells whose a key is: it is a tenant's whose event is sealed with it.
    const key = await this.store.keyOfEvent({ tenant, streamId, version, keyId: id });
    if (key === undefined) {
      const { cell } = this.settings.storage;
      throw new ApiError('key-not-found', 'The tenant has no such event that is sealed with this key.', {
        // A consumer of the topic can tell by it an event that is gone from one of another log.
        details: { logGeneration: this.store.generations.current, ...(cell !== undefined && { cell }) },
      });
    }
    if (key === null)
      throw new ApiError('key-destroyed', 'What is sealed with this key was erased, and nobody can read it.');
    return { id, key: key.toString('base64'), maxAgeSeconds: MAX_AGE_SECONDS };
  }
}
