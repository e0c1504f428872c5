import { type ComponentChildren, type RefObject } from 'preact';
import { useLayoutEffect, useRef, useState } from 'preact/hooks';

/** What a list can be told from outside. */
export interface ListControl {
  /** Brings a line into view. */
  show(index: number): void;
  /** Brings a line into view and focuses what can be focused in it. */
  focus(index: number): void;
}

interface Props {
  readonly label: string;
  readonly count: number;
  readonly keyOf: (index: number) => string;
  readonly render: (index: number) => ComponentChildren;
  /** Pixels of a line, or what they are at a guess until it was measured. */
  readonly height: number;
  readonly isFixed?: boolean;
  /** Begins at the end, and stays there while lines are added. */
  readonly sticksToEnd?: boolean;
  /** Called with the first and the last line that are in view. */
  readonly onView?: (first: number, last: number) => void;
  readonly control?: RefObject<ListControl | undefined>;
}

/** Lines beyond those in view, so that scrolling finds them drawn. */
const MARGIN = 8;
/** So near to the end one has not scrolled away from it. */
const END_PX = 40;

/** Where each line of a list begins, and where the last one ends. */
interface Places {
  readonly tops: (index: number) => number;
  readonly indexAt: (top: number) => number;
}

/**
 * A list that draws only the lines in view, however many there are. Lines keep their place on the screen when others are
 * added before them or turn out to be of another height than was guessed.
 */
export function VirtualList(props: Props) {
  const { label, count, keyOf, render, sticksToEnd = false, onView, control } = props;
  const scroller = useRef<HTMLDivElement>(null);
  const lines = useRef<HTMLDivElement>(null);
  const heights = useRef(new Map<string, number>());
  const view = useRef({ top: 0, height: 800 });
  const anchor = useRef<{ readonly key: string; readonly offset: number } | undefined>(undefined);
  const isAtEnd = useRef(sticksToEnd);
  const [, setDrawn] = useState(0);
  const draw = (): void => {
    setDrawn((drawn) => drawn + 1);
  };
  const places = props.isFixed ? fixed(props.height, count) : measured(props, heights.current);
  const first = Math.max(places.indexAt(view.current.top) - MARGIN, 0);
  const last = Math.min(places.indexAt(view.current.top + view.current.height) + MARGIN, count - 1);

  const look = (): void => {
    const element = scroller.current;
    if (!element) return;
    view.current = { top: element.scrollTop, height: element.clientHeight };
    isAtEnd.current = element.scrollHeight - element.scrollTop - element.clientHeight < END_PX;
    const index = places.indexAt(element.scrollTop);
    anchor.current =
      index < count ? { key: keyOf(index), offset: element.scrollTop - places.tops(index) } : undefined;
  };
  const measure = (): boolean => {
    if (props.isFixed) return false;
    let isNew = false;
    for (const line of (lines.current?.children ?? []) as HTMLCollectionOf<HTMLElement>) {
      const { key = '' } = line.dataset;
      const { height } = line.getBoundingClientRect();
      if (height === 0 || heights.current.get(key) === height) continue;
      heights.current.set(key, height);
      isNew = true;
    }
    return isNew;
  };

  useLayoutEffect(() => {
    const element = scroller.current;
    if (!element) return;
    if (measure()) {
      draw();
      return;
    }
    if (sticksToEnd && isAtEnd.current) {
      element.scrollTop = element.scrollHeight;
    } else if (!props.isFixed && anchor.current) {
      const index = indexOf(anchor.current.key, props);
      const wanted = places.tops(index) + anchor.current.offset;
      if (index >= 0 && Math.abs(wanted - element.scrollTop) > 1) element.scrollTop = wanted;
    }
    const { top, height } = view.current;
    if (Math.abs(top - element.scrollTop) > 1 || height !== element.clientHeight) {
      look();
      draw();
    }
  });
  // The first and the last line in view are told after each drawing, also when they are the same: there may be new ones.
  useLayoutEffect(() => {
    const { top, height } = view.current;
    if (count > 0) onView?.(places.indexAt(top), Math.min(places.indexAt(top + height), count - 1));
  });
  useLayoutEffect(() => {
    const element = scroller.current;
    const observer = new ResizeObserver(() => {
      if (measure() || view.current.height !== element?.clientHeight) draw();
    });
    if (element) observer.observe(element);
    if (lines.current) observer.observe(lines.current);
    const growth = new MutationObserver(() => {
      if (measure()) draw();
    });
    // A line that grows while it is drawn, as a reply does that is being written. Lines that come and go were measured when
    // they were drawn; to hear of them as well would double the work of scrolling.
    if (lines.current && !props.isFixed)
      growth.observe(lines.current, {
        subtree: true,
        characterData: true,
        attributes: true,
        attributeFilter: ['open'],
      });
    return () => {
      observer.disconnect();
      growth.disconnect();
    };
  }, []);

  if (control) {
    const show = (index: number): void => {
      const element = scroller.current;
      if (!element) return;
      const top = places.tops(index);
      const bottom = places.tops(index + 1);
      if (top < element.scrollTop) element.scrollTop = top;
      else if (bottom > element.scrollTop + element.clientHeight)
        element.scrollTop = bottom - element.clientHeight;
      look();
      draw();
    };
    control.current = {
      show,
      focus: (index) => {
        show(index);
        requestAnimationFrame(() => {
          const key = CSS.escape(keyOf(index));
          lines.current?.querySelector<HTMLElement>(`[data-key="${key}"] :is(a, button)`)?.focus();
        });
      },
    };
  }

  const drawn = [];
  for (let index = first; index <= last; index += 1) {
    const key = keyOf(index);
    drawn.push(
      <div
        key={key}
        data-key={key}
        class="line"
        role="listitem"
        aria-setsize={count}
        aria-posinset={index + 1}
        style={{ top: `${places.tops(index)}px` }}
      >
        {render(index)}
      </div>,
    );
  }
  return (
    <div
      ref={scroller}
      class="virtual"
      tabIndex={0}
      role="region"
      aria-label={label}
      onScroll={() => {
        look();
        draw();
      }}
    >
      <div
        ref={lines}
        role="list"
        aria-label={label}
        style={{ height: `${places.tops(count)}px` }}
        // A picture has its height only when it is there.
        onLoadCapture={draw}
      >
        {drawn}
      </div>
    </div>
  );
}

const fixed = (height: number, count: number): Places => ({
  tops: (index) => index * height,
  indexAt: (top) => Math.min(Math.max(Math.floor(top / height), 0), count),
});

function measured({ count, keyOf, height }: Props, heights: ReadonlyMap<string, number>): Places {
  const tops = new Float64Array(count + 1);
  for (let index = 0; index < count; index += 1)
    tops[index + 1] = (tops[index] ?? 0) + (heights.get(keyOf(index)) ?? height);
  return {
    tops: (index) => tops[index] ?? 0,
    indexAt: (top) => {
      let low = 0;
      let high = count;
      while (low < high) {
        const middle = (low + high) >> 1;
        if ((tops[middle + 1] ?? Infinity) > top) high = middle;
        else low = middle + 1;
      }
      return low;
    },
  };
}

function indexOf(key: string, { count, keyOf }: Props): number {
  for (let index = 0; index < count; index += 1) if (keyOf(index) === key) return index;
  return -1;
}
