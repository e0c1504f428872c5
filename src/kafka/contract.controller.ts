import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Controller, Get, Header, Inject, NotFoundException, Param } from '@nestjs/common';
import { asyncApi, type TopicDescription } from './documents.js';
import { version } from '../version.js';

/** To be provided: the settings of the topic, as a `TopicDescription`. */
export const KAFKA_CONTRACT = Symbol('description of the topic');

/** What consumers of the topic read, for people and for programs. Needs no key: it holds no data. */
@Controller()
export class ContractController {
  private readonly schemas: ReadonlyMap<string, string>;

  constructor(@Inject(KAFKA_CONTRACT) private readonly topic: TopicDescription) {
    // The committed files, not what the code would make now: those of earlier versions are there, too.
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
