import { Body, Controller, Get, Param, Post, Res } from '@nestjs/common';
import { type FastifyReply } from 'fastify';
import { Caller } from '../access/caller.js';
import { Requires } from '../access/requirement.js';
import { Answers } from '../http/openapi.js';
import { Write, type WriteContext } from '../http/preconditions.js';
import { sessionPath } from '../sessions/session.schemas.js';
import { READ_EXISTING, WRITE_EXISTING } from '../sessions/sessions.controller.js';
import { ChatBody, Stopped, UiMessageList } from './chat.schemas.js';
import { Chats } from './chats.js';
import { sendTurn } from './ui-stream.js';
import { refTo } from '../sessions/command-context.js';

const WRITE = ['projection-lagging', ...WRITE_EXISTING] as const;

/** The transport of `useChat`. A chat is a session of the same id. */
@Controller('ai-sdk/chat')
export class AiSdkController {
  constructor(private readonly chats: Chats) {}

  @Requires('generate:own', 'messages')
  @Post()
  @Answers(200, null, {
    summary: 'Answer a chat of the AI SDK: new messages, edits, results and approvals of tools, another try',
    stream: true,
    problems: ['session-busy', 'session-limit-reached', ...WRITE],
  })
  async answer(
    @Write() write: WriteContext,
    @Body({ schema: ChatBody }) body: ChatBody,
    @Res({ passthrough: true }) reply: FastifyReply,
  ): Promise<void> {
    await sendTurn(reply, await this.chats.answer(write, body));
  }

  @Requires('sessions:read:own')
  @Get(':id/stream')
  @Answers(200, null, {
    summary: 'Go on reading the reply that is being generated, from its beginning',
    stream: true,
    problems: READ_EXISTING,
  })
  @Answers(204, null, { description: 'Nothing is being generated.' })
  async resume(
    @Caller() caller: Caller,
    @Param('id', { schema: sessionPath }) sessionId: string,
    @Res({ passthrough: true }) reply: FastifyReply,
  ): Promise<void> {
    const turn = await this.chats.running(refTo(caller, sessionId));
    if (turn) await sendTurn(reply, turn);
    else reply.status(204);
  }

  @Requires('sessions:read:own')
  @Get(':id/messages')
  @Answers(200, UiMessageList, {
    summary: 'The history of a chat, for the option `messages` of `useChat`',
    problems: READ_EXISTING,
  })
  messages(@Caller() caller: Caller, @Param('id', { schema: sessionPath }) sessionId: string) {
    return this.chats.messages(refTo(caller, sessionId));
  }

  @Requires('generate:own')
  @Post(':id/stop')
  @Answers(200, Stopped, {
    summary: 'End the reply that is being generated; what has arrived is kept',
    description: '`stop()` of `useChat` only leaves the stream: so does a page that is reloaded.',
    problems: WRITE,
  })
  async stop(@Write() write: WriteContext, @Param('id', { schema: sessionPath }) sessionId: string) {
    return { stopped: await this.chats.stop(write, refTo(write.caller, sessionId)) };
  }
}
