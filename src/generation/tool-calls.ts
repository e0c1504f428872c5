import { z } from 'zod';
import { toolCall, type ToolCall, type ToolDefinition } from '../domain/session.events.js';
import { newId } from '../sessions/ids.js';
import { type SessionState } from '../domain/session.state.js';
import { ModelError } from './chat-model.js';
import { type ReportedCall } from './live-reply.js';
import { storable } from './storable-text.js';

const MAX_ID = 128;
const MAX_NAME = 64;
const MAX_CALLS = 128;
const recordable = z.array(toolCall).max(MAX_CALLS);

/**
 * The tool calls of a reply, in a form that can be recorded. Some providers give no ids, or one id to two calls, and some
 * models make up names: an id is made where there is none of its own, and a name is put into the characters of names.
 * @throws ModelError when there are too many of them
 */
export function checkedCalls(calls: readonly ToolCall[]): ToolCall[] {
  const ids = new Set<string>();
  const clean = calls.map(({ id: given, name, arguments: text }) => {
    let id = storable(given).slice(0, MAX_ID).toWellFormed();
    if (id === '' || ids.has(id)) id = newId('call');
    ids.add(id);
    return { id, name: usableName(name), arguments: storable(text) };
  });
  if (!recordable.safeParse(clean).success) {
    throw new ModelError(
      'model-failed',
      `the model sent ${clean.length} tool calls; at most ${MAX_CALLS} can be kept`,
    );
  }
  return clean;
}

/** Without a name there is nothing to run, but the rest of the reply is worth keeping. */
const usableName = (name: string): string =>
  name.replaceAll(/[^A-Za-z0-9_.:-]/g, '_').slice(0, MAX_NAME) || 'unnamed';

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
