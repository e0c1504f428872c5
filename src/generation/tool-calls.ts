import { z } from 'zod';
import { toolCall, type ToolCall, type ToolDefinition } from '../domain/session.events.js';
import { type SessionState } from '../domain/session.state.js';
import { ModelError } from './chat-model.js';
import { type ReportedCall } from './live-reply.js';
import { storable } from './storable-text.js';

const recordable = z.array(toolCall).max(128);

/**
 * The tool calls of a reply, in a form that can be recorded.
 * @throws ModelError when they cannot: one without an id or a name, an id that is used twice, or too many of them
 */
export function checkedCalls(calls: readonly ToolCall[]): ToolCall[] {
  const clean = calls.map(({ id, name, arguments: text }) => ({
    id: storable(id),
    name,
    arguments: storable(text),
  }));
  const ids = new Set(clean.map((call) => call.id));
  if (!recordable.safeParse(clean).success || ids.size !== clean.length) {
    throw new ModelError('model-failed', 'the model sent tool calls that cannot be used');
  }
  return clean;
}

/**
 * Tool calls as clients see them: a call of a tool that needs an approval says whether the session has one.
 * @param loaded the session, and the database's time, by which approvals run out
 */
export function reportedCalls(
  calls: readonly ToolCall[],
  tools: readonly ToolDefinition[] | undefined,
  loaded: { readonly state: SessionState; readonly time: string },
): ReportedCall[] {
  const now = Date.parse(loaded.time);
  return calls.map((call) => {
    if (tools?.find((tool) => tool.name === call.name)?.approval !== 'required') return call;
    const approval = loaded.state.approvals.find((one) => one.tool === call.name);
    const stands = approval && (approval.expiresAt === undefined || Date.parse(approval.expiresAt) > now);
    return { ...call, approval: stands ? 'granted' : 'required' };
  });
}
