import { Body, Controller, Get, Param, Post } from '@nestjs/common';
import { CommandBus } from '@nestjs/cqrs';
import { type z } from 'zod';
import { Caller } from '../access/caller.js';
import { Requires } from '../access/requirement.js';
import { EraseSession } from '../domain/session.commands.js';
import { Answers } from '../http/openapi.js';
import { Write, type WriteContext } from '../http/preconditions.js';
import { ApiError } from '../http/problem.js';
import { refTo, type SessionAddress } from './command-context.js';
import { dispatch } from './command-handlers.js';
import { Erasures } from './erasures.js';
import { EraseBody, ErasureReceipt, ErasureReceipts, type Receipt, sessionPath } from './session.schemas.js';
import { contextOf, WRITE_EXISTING } from './sessions.controller.js';

/** The erasure of sessions, and its receipts. */
@Controller('v1/sessions')
export class ErasureController {
  constructor(
    private readonly bus: CommandBus,
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
  async erase(
    @Write() write: WriteContext,
    @Param('id', { schema: sessionPath }) sessionId: string,
    @Body({ schema: EraseBody }) body: z.infer<typeof EraseBody>,
  ): Promise<Receipt> {
    const session = refTo(write.caller, sessionId);
    const context = contextOf(write, `POST /v1/sessions/${sessionId}/erase`, body);
    const { state, duplicate } = await dispatch(this.bus, session, new EraseSession(body.reason), context);
    const version = duplicate?.version ?? state.version;
    const receipt = (await this.receiptsOf(session)).findLast((one) => one.version <= version);
    if (!receipt) throw new Error(`the log has no erasure of ${sessionId} up to version ${version}`);
    return receipt;
  }

  @Requires('audit:read')
  @Get(':id/erasure')
  @Answers(200, ErasureReceipts, {
    summary: 'The receipts of a session that was erased, the first erasure first',
    problems: ['not-found', 'projection-lagging', 'upgrade-in-progress', 'database-unavailable'],
  })
  async receipts(
    @Caller() caller: Caller,
    @Param('id', { schema: sessionPath }) sessionId: string,
  ): Promise<{ data: Receipt[] }> {
    const data = await this.receiptsOf(refTo(caller, sessionId));
    if (data.length === 0) throw new ApiError('not-found', 'The session was never erased.');
    return { data };
  }

  private receiptsOf(session: SessionAddress): Promise<Receipt[]> {
    return this.erasures.receipts(session);
  }
}
