import {
  CancelErasure,
  CreateSession,
  DeleteSession,
  EraseSession,
  ScheduleErasure,
} from '../../../src/domain/session.commands.js';
import { created, deleted, event, expired, given, resumed, stateAfter } from './given-when-then.js';

const at = '2026-02-01T00:00:00.000Z';
const later = '2026-03-01T00:00:00.000Z';
const key = '0193a0e0-0000-7000-8000-000000000000';
const there = { incarnations: [{ incarnation: 1, from: 1, to: 2 }], keys: [key], isPlain: false };
const inPlain = { ...there, isPlain: true };
const policy = { eraseAfter: 1_000 };

const requested = event('ErasureScheduled', { at, reason: 'asked' });
const byPolicy = event('ErasureScheduled', { at, policy });
const calledOff = event('ErasureCancelled', { cause: 'request' });
const takenBack = event('ErasureCancelled', { cause: 'policy' });
const held = event('SessionDetailsChanged', { legalHold: true });
const erased = (reason?: string) =>
  event('SessionErased', {
    incarnations: there.incarnations,
    keys: there.keys,
    ...(reason !== undefined && { reason }),
  });

describe('scheduling an erasure by request', () => {
  const ask = (when = at) => new ScheduleErasure(when, 'asked', undefined, there);
  const guard = {
    holds: { before: at },
    otherwise: { refused: 'invalid-request', at: 'at' },
  } as const;

  it('is possible for any session that there ever was, and must be for a time to come', () => {
    for (const past of [[created], [created, expired], [created, deleted]])
      given(...past)
        .when(ask())
        .then([requested], { guard });
    given().when(ask()).then({ refused: 'session-not-found' });
  });

  it('takes the place of the one before, and changes nothing when it is the same', () => {
    given(created, requested).when(ask()).then([]);
    expect(stateAfter(created, requested, event('ErasureScheduled', { at: later })).planned).toEqual({
      requested: { at: later, incarnation: 1 },
    });
  });

  it('is refused under legal hold and for what is stored in plain, and is void where all was erased', () => {
    given(created, held).when(ask()).then({ refused: 'legal-hold' });
    given(created)
      .when(new ScheduleErasure(at, undefined, undefined, inPlain))
      .then({ refused: 'not-sealed' });
    given(created, erased()).when(ask()).then([]);
  });
});

describe('scheduling an erasure by policy', () => {
  const plan = new ScheduleErasure(at, undefined, policy);

  it('is for sessions that have ended, once for each setting', () => {
    given(created).when(plan).then([]);
    given(created, expired).when(plan).then([byPolicy]);
    given(created, deleted).when(plan).then([byPolicy]);
    given(created, deleted, byPolicy).when(plan).then([]);
    given(created, deleted, byPolicy)
      .when(new ScheduleErasure(later, undefined, { eraseAfter: 2_000 }))
      .then([event('ErasureScheduled', { at: later, policy: { eraseAfter: 2_000 } })]);
    given(created, deleted, erased()).when(plan).then([]);
    given(created, held, expired).when(plan).then([]);
  });

  it('does not come again after somebody called it off, until the session was used and has ended again', () => {
    given(created, expired, byPolicy, calledOff).when(plan).then([]);
    given(created, expired, byPolicy, calledOff, deleted).when(plan).then([]);
    given(created, expired, byPolicy, calledOff, resumed, expired).when(plan).then([byPolicy]);
    given(created, deleted, byPolicy, calledOff, created, deleted).when(plan).then([byPolicy]);
    given(created, deleted, byPolicy, takenBack).when(plan).then([byPolicy]);
    // What is called off while the session is in use is not what the policy will schedule.
    given(created, requested, calledOff, expired).when(plan).then([byPolicy]);
  });
});

describe('calling an erasure off', () => {
  it('ends all that is scheduled, or what a policy scheduled', () => {
    given(created, requested, deleted, byPolicy)
      .when(new CancelErasure('a mistake'))
      .then([event('ErasureCancelled', { cause: 'request', reason: 'a mistake' })]);
    expect(stateAfter(created, requested, deleted, byPolicy, calledOff).planned).toEqual({
      isCalledOff: true,
    });
    expect(stateAfter(created, requested, deleted, byPolicy, takenBack).planned).toEqual({
      requested: { at, incarnation: 1, reason: 'asked' },
    });
    given(created, deleted, byPolicy).when(new CancelErasure(undefined, 'policy')).then([takenBack]);
  });

  it('is refused when nothing is scheduled', () => {
    given().when(new CancelErasure()).then({ refused: 'session-not-found' });
    given(created).when(new CancelErasure()).then({ refused: 'not-found' });
    given(created, deleted, byPolicy, calledOff).when(new CancelErasure()).then({ refused: 'not-found' });
    given(created, requested).when(new CancelErasure(undefined, 'policy')).then([]);
  });
});

describe('carrying out a scheduled erasure', () => {
  const carryOut = (which: 'requested' | 'byPolicy', what = there) =>
    new EraseSession(undefined, what, which);

  it('erases with the reason of the request, or the setting', () => {
    given(created, requested)
      .when(carryOut('requested'))
      .then([erased('asked')], { destroys: [key], counters: { active: -1 } });
    given(created, deleted, byPolicy)
      .when(carryOut('byPolicy'))
      .then([erased('retention: eraseAfter 1000 ms')], { destroys: [key] });
    expect(stateAfter(created, requested, erased()).planned).toBeUndefined();
  });

  it('does nothing when it was called off, the session was used, or a legal hold was placed', () => {
    given(created, deleted, byPolicy, calledOff).when(carryOut('byPolicy')).then([]);
    given(created, expired, byPolicy, resumed).when(carryOut('byPolicy')).then([]);
    given(created, expired, byPolicy, held).when(carryOut('byPolicy')).then([]);
    given(created, requested, held).when(carryOut('requested')).then([]);
  });

  it('waits for a later session under the id to be deleted, which the one it was asked for need not be', () => {
    const revived = [created, requested, deleted, created] as const;
    given(created, requested, expired, resumed)
      .when(carryOut('requested'))
      .then([erased('asked')], { destroys: [key], counters: { active: -1 } });
    given(...revived)
      .when(carryOut('requested'))
      .then([]);
    given(...revived, expired)
      .when(carryOut('requested'))
      .then([]);
    given(...revived, deleted)
      .when(carryOut('requested'))
      .then([erased('asked')], { destroys: [key] });
  });

  it('is called off for ever, where a part of the session is stored in plain', () => {
    given(created, deleted, byPolicy)
      .when(carryOut('byPolicy', inPlain))
      .then([event('ErasureCancelled', { cause: 'not-sealed' })]);
  });
});

it('keeps what is scheduled apart from the rest: a deletion leaves it, a new session has none by policy', () => {
  given(created, expired, byPolicy).when(new DeleteSession()).then([deleted]);
  expect(stateAfter(created, expired, byPolicy, deleted).planned).toEqual({ byPolicy: { at, ...policy } });
  given(created, deleted, byPolicy)
    .when(new CreateSession())
    .then([created], { counters: { active: 1 } });
  expect(stateAfter(created, deleted, byPolicy, created).planned).toBeUndefined();
});
