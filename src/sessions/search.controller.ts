import { Controller, Get, Query } from '@nestjs/common';
import { type z } from 'zod';
import { Caller } from '../access/caller.js';
import { Requires } from '../access/requirement.js';
import { Answers } from '../http/openapi.js';
import { MessageSearch } from './message-search.js';
import { SearchQuery, SearchResult } from './session.schemas.js';

@Controller('v1/search')
export class SearchController {
  constructor(private readonly search: MessageSearch) {}

  @Requires('sessions:read:own')
  @Get()
  @Answers(200, SearchResult, {
    summary: 'Search the messages of all sessions, the newest first',
    problems: ['invalid-cursor', 'projection-lagging', 'upgrade-in-progress', 'database-unavailable'],
  })
  find(@Caller() caller: Caller, @Query({ schema: SearchQuery }) query: z.infer<typeof SearchQuery>) {
    return this.search.find(caller, query);
  }
}
