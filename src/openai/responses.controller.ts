import { Body, Controller, Delete, Get, Param, Post, Query, Res } from '@nestjs/common';
import { type FastifyReply } from 'fastify';
import { type z } from 'zod';
import { Caller } from '../access/caller.js';
import { Requires } from '../access/requirement.js';
import { Answers } from '../http/openapi.js';
import { Write, type WriteContext } from '../http/preconditions.js';
import { invalidRequest } from '../http/problem.js';
import { goneOf } from './client-gone.js';
import { type ItemPage, pageOf } from './conversation-items.js';
import { ItemList, ItemsQuery } from './items.schemas.js';
import { sendResponse } from './response-stream.js';
import { responseIdOf, viewOf } from './response-view.js';
import { recordedHead, Responses } from './responses.js';
import { CreateResponseBody, GetResponseQuery, Response, ResponseDeleted } from './responses.schemas.js';
import { OPENAI_PREFIX } from './wire.js';

const READ = ['not-found', 'projection-lagging', 'upgrade-in-progress', 'database-unavailable'] as const;
const WRITE = ['session-busy', 'idempotency-key-reused', 'version-mismatch', 'overloaded', ...READ] as const;

/** Responses of OpenAI's API. Each is a generation of a session: `resp_…` and `gen_…` name the same. */
@Controller(`${OPENAI_PREFIX}/responses`)
export class ResponsesController {
  constructor(private readonly responses: Responses) {}

  @Requires('generate:own', 'messages')
  @Post()
  @Answers(200, Response, {
    summary: 'Have the model answer; with `stream: true` as it arrives',
    stream: true,
    problems: ['session-not-found', 'session-limit-reached', 'model-failed', 'model-timeout', ...WRITE],
  })
  async create(
    @Write() write: WriteContext,
    @Body({ schema: CreateResponseBody }) body: CreateResponseBody,
    @Res({ passthrough: true }) reply: FastifyReply,
  ) {
    const gone = goneOf(reply);
    const { live, head } = await this.responses.create(write, body, gone);
    if (body.stream) {
      await sendResponse(reply, live, head);
      return;
    }
    if (body.background) return viewOf(head, live.end);
    const end = await live.finished();
    if (end.type === 'failed') throw end.error;
    return viewOf(head, end);
  }

  @Requires('sessions:read:own')
  @Get(':id')
  @Answers(200, Response, {
    summary: 'Get a response; with `stream=true` follow it, from the event behind `starting_after` on',
    stream: true,
    problems: READ,
  })
  async get(
    @Caller() caller: Caller,
    @Param('id') id: string,
    @Query({ schema: GetResponseQuery }) query: z.infer<typeof GetResponseQuery>,
    @Res({ passthrough: true }) reply: FastifyReply,
  ) {
    if (query.stream === 'true') {
      const { live, head } = await this.responses.follow(caller, id);
      await sendResponse(reply, live, head, query.starting_after);
      return undefined;
    }
    const found = await this.responses.find(caller, id);
    return viewOf(recordedHead(found), found.end);
  }

  @Requires('sessions:write:own')
  @Delete(':id')
  @Answers(200, ResponseDeleted, {
    summary: 'Delete a response, with its session if it has one of its own; the audit trail stays',
    problems: ['legal-hold', ...WRITE],
  })
  async delete(@Write() write: WriteContext, @Param('id') id: string) {
    await this.responses.delete(write, id);
    return { id, object: 'response', deleted: true };
  }

  @Requires('generate:own')
  @Post(':id/cancel')
  @Answers(200, Response, { summary: 'End a response that runs; what has arrived is kept', problems: WRITE })
  async cancel(@Write() write: WriteContext, @Param('id') id: string) {
    const found = await this.responses.cancel(write, id);
    return viewOf(recordedHead(found), found.end);
  }

  @Requires('sessions:read:own')
  @Get(':id/input_items')
  @Answers(200, ItemList, { summary: 'List what the model was given, the latest first', problems: READ })
  async inputItems(
    @Caller() caller: Caller,
    @Param('id') id: string,
    @Query({ schema: ItemsQuery }) { after, limit, order }: z.infer<typeof ItemsQuery>,
  ): Promise<ItemPage> {
    const items = await this.responses.inputItems(caller, id);
    if (order === 'desc') items.reverse();
    const from = after === undefined ? 0 : items.findIndex((item) => item.id === after) + 1;
    if (after !== undefined && from === 0) {
      const detail = `is no input item of ${responseIdOf(id)}`;
      throw invalidRequest([{ pointer: '/after', in: 'query', detail }]);
    }
    return pageOf(items.slice(from, from + limit), items.length > from + limit);
  }
}
