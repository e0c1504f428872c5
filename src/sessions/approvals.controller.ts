import { Body, Controller, Delete, Get, Param, Put } from '@nestjs/common';
import { CommandBus } from '@nestjs/cqrs';
import { z } from 'zod';
import { moment, sessionEvents, toolName } from '../domain/session.events.js';
import { GrantToolApproval, RevokeToolApproval } from '../domain/session.commands.js';
import { Caller } from '../access/caller.js';
import { Requires } from '../access/requirement.js';
import { Answers } from '../http/openapi.js';
import { Write, type WriteContext } from '../http/preconditions.js';
import { ApiError } from '../http/problem.js';
import { dispatch } from './command-handlers.js';
import { SessionQueries } from './session-queries.js';
import { sessionPath } from './session.schemas.js';
import { contextOf, WRITE_EXISTING } from './sessions.controller.js';
import { refTo } from './command-context.js';

const Approval = sessionEvents.ToolApprovalGranted.data.meta({ id: 'ToolApproval' });
const ApprovalList = z.object({ data: z.array(Approval) });
const GrantBody = z.strictObject({
  scope: z.enum(['once', 'session']).default('once').meta({
    description: 'once: used up by the next result of this tool; session: until revoked, reset or deleted',
  }),
  expiresAt: moment.optional(),
});

/** The tools that a session may run. A reset, a fork or a new incarnation does not keep approvals. */
@Controller('v1/sessions/:id/approvals')
export class ApprovalsController {
  constructor(
    private readonly bus: CommandBus,
    private readonly queries: SessionQueries,
  ) {}

  @Requires('sessions:read:own')
  @Get()
  @Answers(200, ApprovalList, {
    summary: 'List the tool approvals of a session',
    problems: ['session-not-found', 'upgrade-in-progress', 'database-unavailable'],
  })
  async list(@Caller() caller: Caller, @Param('id', { schema: sessionPath }) sessionId: string) {
    return { data: await this.queries.approvals(refTo(caller, sessionId)) };
  }

  @Requires('sessions:write:own')
  @Put(':tool')
  @Answers(200, Approval, { summary: 'Approve a tool', problems: WRITE_EXISTING })
  async grant(
    @Write() write: WriteContext,
    @Param('id', { schema: sessionPath }) sessionId: string,
    @Param('tool', { schema: toolName }) tool: string,
    @Body({ schema: GrantBody.default({ scope: 'once' }) }) body: z.infer<typeof GrantBody>,
  ) {
    const route = `PUT /v1/sessions/${sessionId}/approvals/${tool}`;
    const approval = { tool, scope: body.scope, ...(body.expiresAt && { expiresAt: body.expiresAt }) };
    const session = refTo(write.caller, sessionId);
    await dispatch(this.bus, session, new GrantToolApproval(approval), contextOf(write, route, body));
    return approval;
  }

  @Requires('sessions:write:own')
  @Delete(':tool')
  @Answers(204, null, { summary: 'Take an approval back', problems: ['not-found', ...WRITE_EXISTING] })
  async revoke(
    @Write() write: WriteContext,
    @Param('id', { schema: sessionPath }) sessionId: string,
    @Param('tool', { schema: toolName }) tool: string,
  ): Promise<void> {
    const route = `DELETE /v1/sessions/${sessionId}/approvals/${tool}`;
    const session = refTo(write.caller, sessionId);
    const done = await dispatch(
      this.bus,
      session,
      new RevokeToolApproval(tool),
      contextOf(write, route, null),
    );
    if (done.events.length === 0 && !done.duplicate) {
      throw new ApiError('not-found', 'the session has no approval for this tool');
    }
  }
}
