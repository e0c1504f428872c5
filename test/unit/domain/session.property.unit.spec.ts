import { isDeepStrictEqual } from 'node:util';
import fc from 'fast-check';
import { type Decision, DomainError, type GuardCondition } from '../../../src/domain/decider.js';
import { type Json, type SessionEvent, sessionEvents } from '../../../src/domain/session.events.js';
import {
  AbandonGeneration,
  AppendMessages,
  CancelErasure,
  CancelGeneration,
  ChangeSessionDetails,
  CompleteGeneration,
  type ContextWindow,
  CreateSession,
  DeleteSession,
  EraseSession,
  ExpireSession,
  FailGeneration,
  ForkSession,
  GrantToolApproval,
  type NewMessage,
  RemoveMessage,
  ResetConversation,
  RevokeToolApproval,
  RewindHistory,
  ScheduleErasure,
  type SessionCommand,
  StartGeneration,
} from '../../../src/domain/session.commands.js';
import { type SessionState } from '../../../src/domain/session.state.js';
import { sessionDecider } from '../../../src/domain/session.js';
import { ChangeTenantSettings, tenantDecider } from '../../../src/domain/tenant.js';
import { toRequest } from '../../../src/generation/openai-request.js';
import { buildPrompt } from '../../../src/generation/prompt.js';
import { type ChatMessage, promptFault } from '../../support/fake-openai.js';
import { attempt, deepFreeze } from './given-when-then.js';
import {
  beforeLastReplyIn,
  callsIn,
  foretell,
  messagesIn,
  recount,
  removalIn,
  rewoundIn,
  seenThrough,
} from './naive-session.js';
import { sized } from '../../support/heavy.js';

const FULL = Boolean(process.env['FULL']);
const runs = { seed: 20_260_101, numRuns: sized(20_000, 1_000, 400) };
const TIMEOUT = FULL ? 1_800_000 : 60_000;

const { initialState } = sessionDecider;
const decide = (command: SessionCommand, state: SessionState) => sessionDecider.decide(command, state);
const evolve = (state: SessionState, event: SessionEvent) => sessionDecider.evolve(state, event);

// There are few ids, so that commands concern the same sessions, generations, calls and tools again and again.
const record = <T>(fields: { [K in keyof T]: fc.Arbitrary<T[K]> }) =>
  fc.record(fields, { noNullPrototype: true });
const partly = <T, K extends keyof T>(fields: { [P in keyof T]: fc.Arbitrary<T[P]> }, requiredKeys: K[]) =>
  fc.record(fields, { requiredKeys, noNullPrototype: true });
const maybe = <T>(value: fc.Arbitrary<T>) => fc.option(value, { nil: undefined });

const messageId = fc.constantFrom('m1', 'm2', 'm3');
const generationId = fc.constantFrom('g1', 'g2', 'g3');
const model = fc.constantFrom('small', 'large');
const callId = fc.constantFrom('c1', 'c2', 'c3');
const tool = fc.constantFrom('search', 'mail');
const text = fc.constantFrom('a', 'b');
const content: fc.Arbitrary<NewMessage['content']> = fc.oneof(
  text,
  fc.constant<NewMessage['content']>([{ type: 'text', text: 'a' }]),
);
const metadata: fc.Arbitrary<Record<string, Json>> = fc.constantFrom(
  {},
  { topic: 'sea' },
  { topic: ['sea', 1] },
);
const tokens = fc.nat(9);
const usage = partly(
  { inputTokens: tokens, outputTokens: tokens, cachedTokens: tokens, reasoningTokens: tokens },
  ['inputTokens', 'outputTokens'],
);
const toolCalls = fc.array(record({ id: callId, name: tool, arguments: fc.constant('{}') }), {
  minLength: 1,
  maxLength: 2,
});

const plainMessage: fc.Arbitrary<NewMessage> = record({
  messageId,
  role: fc.constantFrom('user', 'system', 'assistant'),
  content,
  status: fc.constant('complete'),
});
const callingMessage: fc.Arbitrary<NewMessage> = record({
  messageId,
  role: fc.constant('assistant'),
  content,
  toolCalls,
  status: fc.constant('complete'),
});
const resultMessage: fc.Arbitrary<NewMessage> = partly(
  {
    messageId,
    role: fc.constant('tool' as const),
    content,
    toolCallId: callId,
    name: tool,
    status: fc.constant('complete' as const),
  },
  ['messageId', 'role', 'content', 'toolCallId', 'status'],
);
const message = fc.oneof(
  { weight: 2, arbitrary: plainMessage },
  { weight: 3, arbitrary: callingMessage },
  { weight: 3, arbitrary: resultMessage },
);
const messages = fc.array(message, { minLength: 1, maxLength: 3 });
const partial = maybe(partly({ messageId, content, generationId }, ['messageId', 'content']));
const reason = maybe(text);
const details = partly({ owner: fc.constantFrom('alice', 'bob'), title: text, metadata }, []);
const lastActivityAt = fc.constant('2026-01-01T00:00:00.000Z');
const from = record({ sessionId: fc.constant('bob'), version: fc.integer({ min: 1, max: 2 }) });

const erasureIf = (isSealed: boolean) => ({
  incarnations: [{ incarnation: 1, from: 1, to: 2 }],
  keys: ['0193a0e0-0000-7000-8000-000000000000'],
  isPlain: !isSealed,
});

const often = (weight: number, arbitrary: fc.Arbitrary<SessionCommand>) => ({ weight, arbitrary });
const command: fc.Arbitrary<SessionCommand> = fc.oneof(
  often(
    6,
    fc.tuple(details, fc.array(message, { maxLength: 2 })).map((parts) => new CreateSession(...parts)),
  ),
  often(
    2,
    fc.tuple(from, fc.array(message, { maxLength: 3 }), details).map((parts) => new ForkSession(...parts)),
  ),
  often(
    3,
    partly({ title: fc.option(text), metadata, legalHold: fc.boolean() }, []).map(
      (changed) => new ChangeSessionDetails(changed),
    ),
  ),
  often(
    10,
    messages.map((several) => new AppendMessages(several)),
  ),
  often(
    3,
    fc.tuple(messages, fc.integer({ min: 1, max: 4 }), partial).map((parts) => new AppendMessages(...parts)),
  ),
  often(
    12,
    fc
      .tuple(
        partly({ generationId, model, instructions: text }, ['generationId', 'model']),
        fc.oneof(fc.array(message, { maxLength: 1 }), messages),
        partial,
        fc.boolean(),
        maybe(details),
      )
      .map(
        ([generation, asked, part, regenerate, create]) =>
          new StartGeneration(
            generation,
            asked,
            part,
            undefined,
            regenerate && asked.length === 0,
            undefined,
            create,
          ),
      ),
  ),
  often(
    4,
    fc.tuple(messageId, partial).map((parts) => new RemoveMessage(...parts)),
  ),
  // Counted back from the end of the log.
  often(
    4,
    fc.tuple(fc.nat(8), reason, partial).map((parts) => new RewindHistory(...parts)),
  ),
  often(
    6,
    fc
      .tuple(
        partly({ generationId, finishReason: text, usage, durationMs: tokens }, [
          'generationId',
          'finishReason',
        ]),
        partly({ messageId, content, toolCalls }, ['messageId', 'content']),
      )
      .map((parts) => new CompleteGeneration(...parts)),
  ),
  often(
    3,
    fc
      .tuple(
        partly({ generationId, code: text, message: text, usage }, ['generationId', 'code', 'message']),
        partial,
      )
      .map((parts) => new FailGeneration(...parts)),
  ),
  often(
    3,
    fc
      .tuple(partial, partly({ usage, durationMs: tokens }, []), maybe(generationId))
      .map((parts) => new CancelGeneration(...parts)),
  ),
  often(
    3,
    fc.tuple(generationId, partial).map((parts) => new AbandonGeneration(...parts)),
  ),
  often(
    5,
    partly({ tool, scope: fc.constantFrom('once', 'session'), expiresAt: lastActivityAt }, [
      'tool',
      'scope',
    ]).map((approval) => new GrantToolApproval(approval)),
  ),
  often(
    2,
    tool.map((name) => new RevokeToolApproval(name)),
  ),
  often(
    3,
    fc.tuple(reason, partial).map((parts) => new ResetConversation(...parts)),
  ),
  often(
    5,
    fc
      .tuple(fc.constantFrom('ttl', 'cap'), lastActivityAt, maybe(fc.constantFrom(0, 1000)))
      .map((parts) => new ExpireSession(...parts)),
  ),
  often(
    3,
    reason.map((why) => new DeleteSession(why)),
  ),
  often(
    3,
    fc
      .tuple(reason, maybe(fc.constantFrom('requested', 'byPolicy')))
      .map(([why, planned]) => new EraseSession(why, erasureIf(why !== 'b'), planned)),
  ),
  often(
    6,
    fc
      .tuple(
        fc.constantFrom('2026-02-01T00:00:00.000Z', '2026-03-01T00:00:00.000Z'),
        reason,
        maybe(record({ eraseAfter: fc.constantFrom(1_000, 2_000) })),
        fc.boolean(),
      )
      .map(([at, why, policy, isSealed]) => new ScheduleErasure(at, why, policy, erasureIf(isSealed))),
  ),
  often(
    3,
    fc.tuple(reason, fc.constantFrom('request', 'policy')).map((parts) => new CancelErasure(...parts)),
  ),
);

/** A step of a test: a command, and whether the condition of its decision, if there is one, is true at the append. */
const step = record({
  command,
  holds: fc.boolean(),
  view: maybe(record({ age: fc.nat(6), kept: fc.nat(4) })),
});
type Step = typeof step extends fc.Arbitrary<infer T> ? T : never;
const steps = fc.array(step, { minLength: 1, maxLength: 60, size: 'max' });

function expectSame(what: string, actual: unknown, expected: unknown): void {
  // Jest's own comparison prints differences well, but is too slow for a million comparisons.
  if (isDeepStrictEqual(actual, expected)) return;
  expect({ [what]: actual }).toStrictEqual({ [what]: expected });
  throw new Error(`${what}: equal to Jest, but not strictly`);
}

const viaJson = <T>(value: T): T => JSON.parse(JSON.stringify(value)) as T;

/** The outcome of a decision at the append, depending on whether its condition holds. */
function settle(decision: Decision<SessionEvent>, holds: boolean) {
  const asked: GuardCondition[] = [];
  let settled: Decision<SessionEvent> | DomainError = decision;
  while (!(settled instanceof DomainError) && settled.guard) {
    asked.push(settled.guard.holds);
    if (holds) break;
    settled = settled.guard.otherwise;
  }
  return { asked, settled };
}

/** The context of a `GenerationStarted` is compared by the messages in it, so that it may be any ranges. */
function withoutContext(event: SessionEvent): SessionEvent {
  return event.type === 'GenerationStarted' ? { ...event, data: { ...event.data, context: [] } } : event;
}

/** What a provider that insists on pairs of tool calls and results would refuse of a history. */
function pairFault(history: readonly NewMessage[]): string | undefined {
  const request = { model: 'm', messages: buildPrompt(history) };
  const { params } = toRequest(request, { systemFirst: true, usage: true, maxTokens: 'max_tokens' });
  const fault = promptFault(params.messages as readonly ChatMessage[]);
  return fault?.includes('call') ? fault : undefined;
}

/** A session that handles commands; every step is checked. */
class Life {
  readonly log: SessionEvent[] = [];
  readonly states: SessionState[] = [deepFreeze(initialState)];
  active = 0;
  /** The event types, refusals and conditions that occurred, which show whether the test covers all of them. */
  readonly met = new Set<string>();

  get state(): SessionState {
    return this.states.at(-1) ?? initialState;
  }

  do({ command: given, holds, view }: Step): void {
    const window = view && this.window(view.age, view.kept);
    const command = this.prepared(given, window);
    deepFreeze(command);
    const foretold = foretell(command, this.log, holds);
    expectSame(
      'the second decision',
      attempt(() => decide(command, this.state)),
      attempt(() => decide(command, this.state)),
    );
    const { asked, settled } = this.decided(command, holds);
    expectSame('the condition', asked, foretold.asked ? [foretold.asked] : []);
    if (settled instanceof DomainError || 'refused' in foretold) {
      expectSame(
        'the refusal',
        settled instanceof DomainError ? settled.code : settled,
        'refused' in foretold ? foretold.refused : foretold,
      );
      this.met.add('refused' in foretold ? foretold.refused : '');
      return;
    }
    expectSame('the events', settled.events.map(withoutContext), foretold.events);
    expectSame(
      'the counters',
      settled.counters ?? {},
      foretold.active === 0 ? {} : { active: foretold.active },
    );
    this.append(settled, window);
  }

  /** The command with what is read from the log for it. */
  private prepared(given: SessionCommand, window: ContextWindow | undefined): SessionCommand {
    const { log } = this;
    switch (given.type) {
      case 'StartGeneration': {
        const toVersion = given.regenerate ? beforeLastReplyIn(log) : undefined;
        const rewound = toVersion === undefined ? null : (rewoundIn(log, toVersion) ?? null);
        const { generation, messages, partial, regenerate, create } = given;
        return new StartGeneration(generation, messages, partial, window, regenerate, rewound, create);
      }
      case 'AppendMessages': {
        const { messages, replaceLast, partial } = given;
        if (replaceLast === 0) return given;
        const last = messagesIn(log).at(-replaceLast);
        const rewound =
          last && messagesIn(log).length >= replaceLast ? rewoundIn(log, last.version - 1) : undefined;
        return new AppendMessages(messages, replaceLast, partial, rewound);
      }
      case 'RemoveMessage':
        return new RemoveMessage(given.messageId, given.partial, removalIn(log, given.messageId));
      case 'RewindHistory': {
        const toVersion = log.length - given.toVersion;
        return new RewindHistory(toVersion, given.reason, given.partial, rewoundIn(log, toVersion));
      }
      default:
        return given;
    }
  }

  private decided(command: SessionCommand, holds: boolean) {
    try {
      return settle(decide(command, this.state), holds);
    } catch (error) {
      if (error instanceof DomainError) return { asked: [], settled: error };
      throw error;
    }
  }

  /** The window that a reader with an outdated state selects: the first message and the last few. */
  private window(age: number, kept: number): ContextWindow {
    const upTo = Math.max(0, this.log.length - age);
    const versions = messagesIn(this.log.slice(0, upTo)).map(({ version }) => version);
    const picked = [...versions.slice(0, 1), ...versions.slice(1).slice(-kept)];
    return { upTo, ranges: picked.map((version) => [version, version]) };
  }

  private append({ events, counters }: Decision<SessionEvent>, window: ContextWindow | undefined): void {
    for (const event of events) {
      expectSame('the event by its schema', sessionEvents[event.type].data.parse(event.data), event.data);
      const before = this.log.at(-1);
      this.log.push(deepFreeze(event));
      this.states.push(deepFreeze(evolve(this.state, event)));
      this.met.add(event.type);
      if (before?.type === 'SessionDeleted')
        expectSame('what follows a delete', /Created|Erased|^Erasure/.test(event.type), true);
      if (event.type === 'GenerationStarted') this.checkContext(event.data.context, window);
      this.check(event);
    }
    this.active += counters?.['active'] ?? 0;
    expectSame('the count of active sessions', this.active, this.state.status === 'active' ? 1 : 0);
  }

  /** What must be true after every single event. */
  private check(event: SessionEvent): void {
    const { state, log } = this;
    const { historyStart, ...rest } = state;
    expectSame('the state', rest, recount(log));
    expectSame('the version', state.version, log.length);
    expectSame(
      'the incarnation',
      state.incarnation,
      log.filter(({ type }) => type === 'SessionCreated').length,
    );
    expectSame('the count of messages', state.messageCount, messagesIn(log).length);
    if (['SessionCreated', 'SessionDeleted', 'SessionErased', 'ConversationReset'].includes(event.type)) {
      expectSame('the approvals', state.approvals, []);
      expectSame('the open tool calls', state.openToolCalls, []);
      expectSame('the generation', state.generation, null);
    }
    if (state.status !== 'deleted') {
      expectSame(
        'the begin of history',
        log[historyStart - 1]?.type.match(/SessionCreated|ConversationReset/)?.length,
        1,
      );
    }
    const left = log.slice(1 + log.findLastIndex(({ type }) => type === 'SessionErased'));
    const started = left.filter(({ type }) => type === 'GenerationStarted').length;
    const ended = left.filter(({ type }) => /^Generation(Completed|Failed|Cancelled)$/.test(type)).length;
    expectSame('the generations that run', started - ended, state.generation ? 1 : 0);
    expectSame('the stored state', viaJson(state), state);
  }

  private checkContext(
    context: readonly (readonly [number, number])[],
    window: ContextWindow | undefined,
  ): void {
    expectSame(
      'a range of the context that runs backwards',
      context.find(([first, last]) => first > last),
      undefined,
    );
    const versions = context.flatMap(([first, last]) =>
      Array.from({ length: last - first + 1 }, (_, index) => first + index),
    );
    expectSame(
      'a version in the context that is not in the log',
      versions.find((one) => one >= this.log.length),
      undefined,
    );
    expectSame(
      'the messages in the context',
      messagesIn(this.log).flatMap(({ version }) => (versions.includes(version) ? [version] : [])),
      seenThrough(window, this.log),
    );
    const seen = messagesIn(this.log).filter(({ version }) => versions.includes(version));
    // A window of a test may part a call from its result; the one of the service does not.
    if (!window)
      expectSame('what a provider would refuse', pairFault(seen.map(({ message }) => message)), undefined);
    expectSame(
      'the tool calls without a result when the model is asked',
      callsIn(this.log).filter(({ answered }) => !answered),
      [],
    );
  }
}

describe('any sequence of commands', () => {
  it(
    'leads to the result of the naive rules, and breaks no invariant',
    () => {
      const met = new Set<string>();
      fc.assert(
        fc.property(steps, fc.nat(), (taken, cut) => {
          const life = new Life();
          for (const one of taken) life.do(one);

          const { log, state, states } = life;
          expectSame('the state folded from the log', log.reduce(evolve, initialState), state);
          const from = cut % states.length;
          const stored = viaJson(states[from] ?? initialState);
          expectSame(
            'the state folded on from a stored one',
            viaJson(log.slice(from)).reduce(evolve, stored),
            state,
          );
          life.met.forEach((one) => met.add(one));
        }),
        runs,
      );
      // Everything that can happen must have happened; otherwise the sequences above would prove little.
      const types = Object.keys(sessionEvents).filter((type) => type !== 'TenantSettingsChanged');
      expect([...met].sort()).toEqual(
        [
          ...types,
          'invalid-request',
          'legal-hold',
          'not-found',
          'not-sealed',
          'session-busy',
          'session-not-found',
        ].sort(),
      );
    },
    TIMEOUT,
  );
});

describe('any sequence of tenant settings', () => {
  const number = fc.option(fc.integer({ min: 1, max: 3 }));
  const settings = partly(
    {
      sessionTTL: number,
      maxSessions: number,
      capPolicy: fc.option(fc.constantFrom('reject', 'evict')),
      deleteAfter: number,
      eraseAfter: number,
    },
    [],
  );

  it(
    'leaves the last value of each setting that was not removed, and records changes only',
    () => {
      fc.assert(
        fc.property(fc.array(settings, { size: 'max', maxLength: 20 }), (taken) => {
          let state = deepFreeze(tenantDecider.initialState);
          const expected = new Map<string, unknown>();
          let version = 0;
          for (const asked of taken) {
            const changes = Object.entries(asked).filter(
              ([key, value]) => (expected.get(key) ?? null) !== value,
            );
            changes.forEach(([key, value]) => expected.set(key, value));
            if (changes.length > 0) version += 1;

            const { events } = tenantDecider.decide(deepFreeze(new ChangeTenantSettings(asked)), state);
            expectSame(
              'the changes',
              events.map(({ data }) => data),
              changes.length > 0 ? [Object.fromEntries(changes)] : [],
            );
            state = deepFreeze(events.reduce((before, event) => tenantDecider.evolve(before, event), state));
            expectSame('the version', state.version, version);
            expectSame(
              'the overrides',
              new Map(Object.entries(state.overrides)),
              new Map([...expected].filter(([, value]) => value !== null)),
            );
          }
        }),
        runs,
      );
    },
    TIMEOUT,
  );
});
