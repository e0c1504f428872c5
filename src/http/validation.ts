import { Injectable, type ArgumentMetadata, type PipeTransform } from '@nestjs/common';
import { z } from 'zod';
import { invalidRequest, jsonPointer, type InputError } from './problem.js';
import { isStorable, NOT_STORABLE } from './json-body.js';

/** Most faults that an error lists: a large body can have a million of them. */
const MAX_ERRORS = 50;

type Issue = z.core.$ZodIssue;
type Path = readonly PropertyKey[];

/**
 * Validates the values of `@Body({ schema })`, `@Query({ schema })` and `@Param({ schema })`, and passes the parsed
 * value to the handler. The schemas are synchronous zod schemas.
 *
 * @throws ApiError `invalid-request` with one entry in `errors` for each fault, at most 50
 */
@Injectable()
export class SchemaPipe implements PipeTransform {
  transform(value: unknown, { schema, type, data }: ArgumentMetadata): unknown {
    if (!(schema instanceof z.ZodType)) {
      return value;
    }
    const part = type === 'param' ? 'path' : type === 'query' ? 'query' : 'body';
    const prefix = data === undefined ? [] : [data];
    if (part !== 'body') {
      // Bodies were checked for such text when they were parsed.
      const faults = unstorable(value, prefix);
      if (faults.length > 0) {
        throw invalidRequest(
          faults.map((path) => ({ ...NOT_STORABLE_ERROR, in: part, pointer: jsonPointer(path) })),
        );
      }
    }
    const result = schema.safeParse(value);
    if (result.success) {
      return result.data;
    }
    const errors: InputError[] = [];
    for (const { path, detail } of explain(result.error.issues)) {
      errors.push({ pointer: jsonPointer([...prefix, ...path]), in: part, detail });
    }
    throw invalidRequest(
      errors.slice(0, MAX_ERRORS),
      errors.length > MAX_ERRORS ? `${errors.length} faults, of which ${MAX_ERRORS} are listed` : undefined,
    );
  }
}

const NOT_STORABLE_ERROR = { detail: `must not contain ${NOT_STORABLE}` };

function unstorable(value: unknown, path: Path): Path[] {
  if (typeof value === 'string') {
    return isStorable(value) ? [] : [path];
  }
  if (typeof value !== 'object' || value === null) {
    return [];
  }
  return Object.entries(value).flatMap(([key, member]) =>
    isStorable(key) ? unstorable(member, [...path, key]) : [path],
  );
}

interface Explained {
  readonly path: Path;
  readonly detail: string;
}

function explain(issues: readonly Issue[]): Explained[] {
  return issues.flatMap((issue): Explained[] => {
    switch (issue.code) {
      case 'unrecognized_keys':
        return issue.keys.map((key) => ({ path: [...issue.path, key], detail: 'is not a known field' }));
      case 'invalid_union': {
        const branch = likeliest(issue.errors);
        return branch === undefined
          ? [{ path: issue.path, detail: issue.message }]
          : branch.map(({ path, detail }) => ({ path: [...issue.path, ...path], detail }));
      }
      default:
        return [{ path: issue.path, detail: issue.message }];
    }
  });
}

/**
 * The alternative of a union that the client probably meant: the one whose faults lie deepest, then the one with the
 * fewest faults. "messages/3/role is wrong" says more than "content is missing", which is the fault of the alternative
 * for a single message.
 */
function likeliest(branches: readonly (readonly Issue[])[]): Explained[] | undefined {
  const ranked = branches
    .map((branch) => {
      const faults = explain(branch);
      return { faults, depth: Math.min(...faults.map(({ path }) => path.length)) };
    })
    .sort((a, b) => b.depth - a.depth || a.faults.length - b.faults.length);
  const [best] = ranked;
  if (best === undefined) {
    return undefined;
  }
  if (best.depth > 0) {
    return best.faults;
  }
  // The value has the type of no alternative, so the error lists what each alternative accepts.
  const details = ranked.flatMap(({ faults }) => faults.map(({ detail }) => detail));
  return [{ path: [], detail: [...new Set(details)].join('; or: ') }];
}
