// Bundles the part of NiiVue that the volume viewer of a report needs; niivue.txt beside it gives the commands.
// Left out: files of meshes, zarr, all but a few colour maps, the picture that lights meshes.
import { build } from "esbuild";
import path from "node:path";

const source = path.resolve("package/src");
const colourMaps = ["gray", "red", "green", "blue", "hot", "warm", "cool", "inferno", "$itksnap"];
const left = "throw new Error('not in this build of NiiVue')";
const stubs = {
  "@/cmaps": colourMaps.map((name) => `export { default as ${name} } from "${source}/cmaps/${name.replace("$", "_")}.json";`).join("\n"),
  "@/nvmesh-loaders": `export class NVMeshLoaders { static readMesh() { ${left} } }`,
  "@/nvimage/zarr": "export class NVZarrHelper {} export class ZarrChunkClient {} export class ZarrChunkCache {}",
  "@/nvimage/zarr/NVZarrHelper": `export class NVZarrHelper { static async create() { ${left} } }`,
  "@/nvimage/ZarrProcessor": `export async function loadZarrData() { ${left} }`,
  "@/matcaps/Shiny.jpg":
    'export default "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg==";',
};

await build({
  stdin: { contents: 'export { Niivue, NVImage, SLICE_TYPE } from "@/niivue/index.ts";', resolveDir: source, loader: "ts" },
  bundle: true,
  minify: true,
  format: "iife",
  globalName: "niivue",
  target: "es2020",
  charset: "ascii",
  legalComments: "inline",
  loader: { ".png": "dataurl", ".jpg": "dataurl" },
  plugins: [
    {
      name: "left out",
      setup(made) {
        made.onResolve({ filter: /^@\// }, (found) => {
          const name = found.path.replace(/\.ts$/, "");
          if (name in stubs) return { path: name, namespace: "stub" };
          return made.resolve(path.join(source, found.path.slice(2)), { resolveDir: source, kind: found.kind });
        });
        made.onLoad({ filter: /.*/, namespace: "stub" }, (found) => ({
          contents: stubs[found.path],
          resolveDir: source,
          loader: "ts",
        }));
      },
    },
  ],
  outfile: "niivue.min.js",
});
