import type { FastifyRequest } from 'fastify';
import { pathOf } from './errors.js';
import { ApiError } from './problem.js';

/** The existing routes, by which a wrong method is told from a wrong path. */
export class RouteTable {
  readonly #methods = new Map<string, Set<string>>();
  readonly #public = new Set<string>();

  /**
   * @param url the path of a route as Fastify writes it: `:name` is a parameter, `*` matches anything
   * @param isPublic whether everybody may know that the path exists
   */
  add(method: string | readonly string[], url: string, isPublic: boolean): void {
    if (isPublic) this.#public.add(url);
    const methods = this.#methods.get(url) ?? new Set();
    for (const each of typeof method === 'string' ? [method] : method) {
      methods.add(each);
    }
    this.#methods.set(url, methods);
  }

  /** Whether everybody may be told what the path of a request takes. */
  isPublic(request: FastifyRequest): boolean {
    const segments = pathOf(request).split('/');
    return [...this.#public].some((url) => matches(url.split('/'), segments));
  }

  /** The error for a request that matches no route. */
  unmatched(request: FastifyRequest): ApiError {
    const path = pathOf(request);
    const segments = path.split('/');
    const allowed = new Set<string>();
    for (const [url, methods] of this.#methods) {
      if (matches(url.split('/'), segments)) {
        methods.forEach((method) => allowed.add(method));
      }
    }
    // The method exists for this path, so the route itself refused the request.
    if (allowed.size === 0 || allowed.has(request.method)) {
      return new ApiError('not-found', `There is no ${request.method} ${path}.`);
    }
    const allow = [...allowed].sort().join(', ');
    return new ApiError('method-not-allowed', `${path} takes ${allow}.`, { headers: { allow } });
  }
}

function matches(pattern: readonly string[], segments: readonly string[]): boolean {
  return (
    pattern.length === segments.length &&
    pattern.every((part, i) => {
      const segment = segments[i] ?? '';
      return part.startsWith(':') ? segment !== '' : part === decoded(segment);
    })
  );
}

function decoded(segment: string): string {
  try {
    return decodeURIComponent(segment);
  } catch {
    return segment;
  }
}
