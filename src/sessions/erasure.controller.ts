import { Body, Controller, Delete, Get, Param, Post, Res } from '@nestjs/common';
import { CommandBus } from '@nestjs/cqrs';
import { type FastifyReply } from 'fastify';
import { type z } from 'zod';
import { Caller } from '../access/caller.js';
import { Requires } from '../access/requirement.js';
import { CancelErasure, EraseSession, ScheduleErasure } from '../domain/session.commands.js';
import { isErased } from '../domain/session.state.js';
import { Answers } from '../http/openapi.js';
import { Write, type WriteContext } from '../http/preconditions.js';
import { ApiError } from '../http/problem.js';
import { type CommandContext, refTo, type SessionAddress, type SessionRef } from './command-context.js';
import { dispatch } from './command-handlers.js';
import { Erasures, scheduledErasures } from './erasures.js';
import {
  CancelErasureBody,
  EraseBody,
  ErasureReceipt,
  ErasureReceipts,
  type Receipt,
  type Scheduled,
  ScheduledErasure,
  sessionPath,
} from './session.schemas.js';
import { SessionCommands } from './session-commands.js';
import { contextOf, WRITE_EXISTING } from './sessions.controller.js';

/** The erasure of sessions, at once or at a time to come, and its receipts. */
@Controller('v1/sessions')
export class ErasureController {
  constructor(
    private readonly bus: CommandBus,
    private readonly commands: SessionCommands,
    private readonly erasures: Erasures,
  ) {}

  @Requires('erase')
  @Post(':id/erase')
  @Answers(200, ErasureReceipt, {
    summary: 'Make unreadable, for ever, what was said in a session through all its incarnations',
    description:
      'Also in a deleted or expired session. Events stay, without their data. When nothing is left to erase, this is the receipt of the last time.',
    problems: ['legal-hold', 'not-sealed', 'projection-lagging', ...WRITE_EXISTING],
  })
  @Answers(202, ScheduledErasure, {
    description:
      'It is scheduled for the time that was given, in place of what was asked for before, and can be called off until then.',
  })
  async erase(
    @Write() write: WriteContext,
    @Param('id', { schema: sessionPath }) sessionId: string,
    @Body({ schema: EraseBody }) body: z.infer<typeof EraseBody>,
    @Res({ passthrough: true }) reply: FastifyReply,
  ): Promise<Receipt | Scheduled> {
    const session = refTo(write.caller, sessionId);
    const context = contextOf(write, `POST /v1/sessions/${sessionId}/erase`, body);
    if (body.at !== undefined) {
      const scheduled = await this.schedule(session, new Date(body.at).toISOString(), body.reason, context);
      if (scheduled) {
        reply.status(202);
        return scheduled;
      }
    }
    const { state, duplicate } = await dispatch(this.bus, session, new EraseSession(body.reason), context);
    const version = duplicate?.version ?? state.version;
    const receipt = (await this.receiptsOf(session)).findLast((one) => one.version <= version);
    if (!receipt) throw new Error(`the log has no erasure of ${sessionId} up to version ${version}`);
    return receipt;
  }

  @Requires('audit:read')
  @Get(':id/erasure')
  @Answers(200, ErasureReceipts, {
    summary: 'The receipts of a session that was erased, the first erasure first, and what is scheduled',
    problems: ['not-found', 'projection-lagging', 'upgrade-in-progress', 'database-unavailable'],
  })
  async receipts(
    @Caller() caller: Caller,
    @Param('id', { schema: sessionPath }) sessionId: string,
  ): Promise<{ data: Receipt[]; scheduled: Scheduled[] }> {
    const session = refTo(caller, sessionId);
    const data = await this.receiptsOf(session);
    const scheduled = scheduledErasures(sessionId, (await this.commands.load(session)).state);
    if (data.length + scheduled.length === 0)
      throw new ApiError('not-found', 'The session was never erased, and no erasure of it is scheduled.');
    return { data, scheduled };
  }

  @Requires('erase')
  @Delete(':id/erasure')
  @Answers(204, null, {
    summary: 'Call off the scheduled erasures of a session',
    description:
      'The policy of the tenant schedules none until the session was used again and has ended again. What was erased stays erased.',
    problems: ['not-found', ...WRITE_EXISTING],
  })
  async cancel(
    @Write() write: WriteContext,
    @Param('id', { schema: sessionPath }) sessionId: string,
    @Body({ schema: CancelErasureBody }) body: z.infer<typeof CancelErasureBody>,
  ): Promise<void> {
    const session = refTo(write.caller, sessionId);
    const context = contextOf(write, `DELETE /v1/sessions/${sessionId}/erasure`, body);
    await dispatch(this.bus, session, new CancelErasure(body.reason), context);
  }

  /** @returns undefined when nothing is there that could be erased later: all of it was erased before */
  private async schedule(
    session: SessionRef,
    at: string,
    reason: string | undefined,
    context: CommandContext,
  ): Promise<Scheduled | undefined> {
    const command = new ScheduleErasure(at, reason);
    const { state, duplicate } = await dispatch(this.bus, session, command, context);
    if (isErased({ ...state, version: duplicate?.version ?? state.version })) return undefined;
    return { sessionId: session.sessionId, at, ...(reason !== undefined && { reason }) };
  }

  private receiptsOf(session: SessionAddress): Promise<Receipt[]> {
    return this.erasures.receipts(session);
  }
}
