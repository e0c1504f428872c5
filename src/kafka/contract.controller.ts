import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Controller, Get, Header, Inject, NotFoundException, Param } from '@nestjs/common';
import { asyncApi, type TopicDescription } from './documents.js';
import { version } from '../version.js';

/** Injection token of the settings of the topic, a `TopicDescription`. */
export const KAFKA_CONTRACT = Symbol('description of the topic');

/** Serves the contract of the topic. No key is needed, because the contract holds nobody's data. */
@Controller()
export class ContractController {
  private readonly schemas: ReadonlyMap<string, string>;

  constructor(@Inject(KAFKA_CONTRACT) private readonly topic: TopicDescription) {
    // The committed files and not the schemas of this code: they include those of earlier versions.
    const folder = join(__dirname, '..', '..', 'schemas');
    this.schemas = new Map(
      readdirSync(folder)
        .filter((name) => name.endsWith('.json'))
        .map((name) => [name, readFileSync(join(folder, name), 'utf8')]),
    );
  }

  @Get('asyncapi.json')
  @Header('content-type', 'application/json')
  asyncApi() {
    return asyncApi(this.topic, version);
  }

  @Get('schemas')
  list() {
    return { data: [...this.schemas.keys()] };
  }

  @Get('schemas/:file')
  @Header('content-type', 'application/schema+json')
  schema(@Param('file') file: string) {
    const schema = this.schemas.get(file);
    if (schema === undefined) throw new NotFoundException();
    return schema;
  }
}
