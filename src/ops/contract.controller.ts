import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Controller, Get, Header, Inject, Param } from '@nestjs/common';
import { z } from 'zod';
import { Public } from '../access/requirement.js';
import { type Config, SETTINGS } from '../config.js';
import { Answers } from '../http/openapi.js';
import { ApiError } from '../http/problem.js';
import { asyncApi } from '../kafka/documents.js';
import { version } from '../version.js';

/** Serves the contract of the Kafka topic. It needs no key, because it contains no data of tenants. */
@Controller()
export class ContractController {
  private readonly schemas: ReadonlyMap<string, string>;

  constructor(@Inject(SETTINGS) private readonly settings: Config) {
    // Serves the committed files instead of the schemas of this code, because they include those of earlier versions.
    const folder = join(__dirname, '..', '..', 'schemas');
    this.schemas = new Map(
      readdirSync(folder)
        .filter((name) => name.endsWith('.json'))
        .map((name) => [name, readFileSync(join(folder, name), 'utf8')]),
    );
  }

  @Public()
  @Get('asyncapi.json')
  @Header('content-type', 'application/json')
  asyncApi() {
    return asyncApi(this.settings.kafka, version);
  }

  @Public()
  @Get('schemas')
  list() {
    return { data: [...this.schemas.keys()] };
  }

  @Public()
  @Get('schemas/:file')
  @Header('content-type', 'application/schema+json')
  @Answers(200, z.record(z.string(), z.unknown()), {
    summary: 'The JSON Schema of one version of an event',
    problems: ['not-found'],
  })
  schema(@Param('file') file: string) {
    const schema = this.schemas.get(file);
    if (schema === undefined) throw new ApiError('not-found', `There is no schema ${file}.`);
    return schema;
  }
}
